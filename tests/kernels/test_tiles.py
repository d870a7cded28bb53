"""The tile table and the model that splits the memory."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import cubin, launch, tiles, tune


def test_examples_in_the_documentation() -> None:
    for module in (tiles, cubin, tune, launch):
        result = doctest.testmod(module)
        assert result.attempted
        assert not result.failed


def test_every_target_has_every_class() -> None:
    for op, archs in tiles.table().items():
        assert list(archs) == list(tiles.SHARED_LIMIT), op
        assert all(tile.resident >= 1 for classes in archs.values() for tile in classes.values())
    for classes in tiles.table()["memory_read"].values():
        for key_dim in (32, 64, 128):
            for dtype in ("fp16", "fp32"):
                for objects in (1, 2):
                    for value_dim in range(64, 513, 64):
                        block_v = tiles.value_block(dtype, objects, value_dim)
                        assert tiles.read_class(dtype, key_dim, value_dim, block_v) in classes
                        assert value_dim % block_v == 0 or block_v % value_dim == 0


@given(
    blocks=st.integers(1, 4000),
    steps=st.integers(1, 20000),
    multiprocessors=st.integers(1, 160),
    resident=st.integers(1, 8),
)
def test_splits_are_sound(blocks: int, steps: int, multiprocessors: int, resident: int) -> None:
    splits = tiles.choose_splits(blocks, steps, multiprocessors, resident)
    assert 1 <= splits <= min(tiles.SPLIT_LIMIT, steps)
    full = blocks * multiprocessors * resident
    # Nothing idles in whole rounds: a split would only add starts and the merge.
    assert tiles.choose_splits(full, steps, multiprocessors, resident) == 1


@pytest.mark.parametrize(("multiprocessors", "arch"), [(84, "sm_86"), (132, "sm_90")])
def test_a_frame_fills_the_card(multiprocessors: int, arch: str) -> None:
    """480×864, one object, two slots: 26 blocks without splits, on 84 or 132 multiprocessors."""
    plan = tiles.tile_memory_read(
        "fp16", 1620, 64, 64, 1, 2, arch=arch, multiprocessors=multiprocessors
    )
    x, y, z = plan.grid(1620, 1, 64)
    assert (x, y) == (26, 1)
    assert x * y * z >= multiprocessors


def test_nearest_architecture() -> None:
    assert tiles.nearest_arch(8, 7) == "sm_87"
    assert tiles.nearest_arch(10, 3) == "sm_100"
    with pytest.raises(ValueError, match=r"6\.1: Triton kernels need 7\.5 or newer"):
        tiles.nearest_arch(6, 1)
