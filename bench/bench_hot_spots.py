"""The hot spots of a step on the CPU, by pytest-benchmark.

    pytest bench/bench_hot_spots.py --benchmark-autosave          # keep the figures
    pytest bench/bench_hot_spots.py --benchmark-compare           # against those kept last
    pytest bench/bench_hot_spots.py --benchmark-disable           # each once, for function only

The memory read's fused kernel, and its rivals on a GPU: bench_memory_read.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.cases import demo_clip
from engine.geometry import Geometry, frame_to_network, masks_to_network
from engine.media.masks import load_ids, write_mask
from engine.media.overlay import overlay
from engine.segmenter import Segmenter
from engine.weights import available

U8 = NDArray[np.uint8]
SIZE = 240


@pytest.fixture(scope="module")
def clip() -> tuple[U8, U8]:
    """Frames [T, 240, 426, 3] of the demo and the mask of the first, two objects."""
    return demo_clip(12, SIZE, 2)


@pytest.fixture(scope="module")
def large() -> tuple[U8, U8]:
    """One frame [720, 1280, 3] and its mask."""
    frames, mask = demo_clip(1, 720, 2)
    return frames[0], mask


@pytest.mark.parametrize("slots", [2, 24], ids=["finite", "infinite"])
def test_memory_read_reference(benchmark: Any, slots: int) -> None:
    """The eager memory read at 480×864, one object."""
    torch = pytest.importorskip("torch")
    from kernels.memory_read.reference import memory_read_reference

    torch.manual_seed(0)
    query, keys = torch.randn(1620, 64), torch.randn(slots, 1620, 64)
    values = torch.randn(slots, 1, 1620, 64)
    table = torch.arange(slots, dtype=torch.int32)[None]
    with torch.inference_mode():
        readout = benchmark(memory_read_reference, query, keys, values, table)
    assert readout.shape == (1, 1620, 64) and readout.isfinite().all()


@pytest.mark.parametrize("objects", [1, 5])
def test_aggregate(benchmark: Any, objects: int) -> None:
    """Soft aggregation at 480×864."""
    torch = pytest.importorskip("torch")
    from engine.model import aggregate

    torch.manual_seed(0)
    masks = torch.rand(objects, 480, 864)
    with torch.inference_mode():
        probabilities = benchmark(aggregate, masks)
    assert torch.allclose(probabilities.sum(0), torch.ones(480, 864))


def test_preprocess_frame(benchmark: Any, large: tuple[U8, U8]) -> None:
    """A 720p frame to the network's 480p."""
    geometry = Geometry.fit(large[1].shape[0], large[1].shape[1], 480)
    assert benchmark(frame_to_network, large[0], geometry).shape == (*geometry.network, 3)


def test_preprocess_masks(benchmark: Any, large: tuple[U8, U8]) -> None:
    """Two given 720p masks to the network's 480p."""
    geometry = Geometry.fit(large[1].shape[0], large[1].shape[1], 480)
    planes = benchmark(masks_to_network, large[1], [1, 2], geometry)
    assert planes.shape == (2, *geometry.padded) and planes.max() == 1


def test_mask_encode(benchmark: Any, large: tuple[U8, U8], tmp_path: Path) -> None:
    """A 720p mask to a PNG file."""
    benchmark(write_mask, tmp_path / "mask.png", large[1])
    assert np.array_equal(load_ids(tmp_path / "mask.png"), large[1])


def test_mask_decode(benchmark: Any, large: tuple[U8, U8], tmp_path: Path) -> None:
    """A 720p mask from a PNG file."""
    write_mask(tmp_path / "mask.png", large[1])
    assert np.array_equal(benchmark(load_ids, tmp_path / "mask.png"), large[1])


def test_overlay(benchmark: Any, large: tuple[U8, U8]) -> None:
    """Two objects drawn over a 720p frame."""
    drawn = benchmark(overlay, *large)
    assert (drawn != large[0]).any() and np.array_equal(
        drawn[large[1] == 0], large[0][large[1] == 0]
    )


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("model", available())
def test_step(benchmark: Any, clip: tuple[U8, U8], backend: str, model: str) -> None:
    """One frame from end to end at 240p, two objects."""
    if backend == "reference":
        pytest.importorskip("torch")
    frames, mask = clip
    with Segmenter.load(model, backend, size=SIZE) as segmenter:
        segmenter.start(frames[0], mask)
        result = benchmark(segmenter.step, frames[1])
    assert set(np.unique(result)) <= {0, 1, 2} and result.any()
