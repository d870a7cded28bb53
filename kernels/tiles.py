"""Tile sizes and launches: an explicit table, no autotuner at run time.

``tiles.json`` holds one entry per (op, architecture, shape class). The entries that ship were
chosen without a GPU, from the compiled code alone: no spills, shared memory within the limit,
two or three blocks to a multiprocessor where that can be had. ``python -m kernels.tune`` replaces
them with measured ones where there is a GPU. The shape classes of ``memory_read`` are
``"<dtype> ck<Ck> v<value columns>"``, with columns ``2x64`` where two objects share a block; the
image operations have the one class ``"pixels"``.

The number of memory splits depends on the shape, so a model picks it (``tile_memory_read``). The C
library holds the same integer arithmetic, and a test compares the two.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE_FILE = Path(__file__).with_name("tiles.json")

#: The softmax is computed in base 2: the hardware's exponential is.
LOG2E = 1.4426950408889634

#: Targets of the build, and the shared memory that one block may use, in bytes (CUDA C++
#: Programming Guide, table "Technical specifications per compute capability"). Triton does not
#: enforce it ahead of time.
SHARED_LIMIT = {
    "sm_75": 65536,
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_87": 166912,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_120": 101376,
}

# The split model's constants, in units of the time in which a busy multiprocessor does one tile.
# Assumed, not measured: one block alone needs twice that for a tile (its two products and the
# softmax between them wait for each other), a block costs two tiles to start, a merge four and
# one per split.
SPLIT_LIMIT = 16
ALONE = 2
START = 2
MERGE = 4

#: Rows (object, position) and value columns that one block of the merge kernel joins.
MERGE_ROWS = 16
MERGE_COLUMNS = 64
MERGE_WARPS = 4


@dataclass(frozen=True)
class Tile:
    """How one block of a kernel is laid out. ``resident``: blocks that fit on a multiprocessor."""

    block: tuple[int, ...]
    warps: int
    stages: int
    resident: int


@dataclass(frozen=True)
class ReadTiling:
    """One launch of ``memory_read``: [block_m × block_n] scores by block_v value columns."""

    block_m: int
    block_n: int
    block_v: int
    warps: int
    stages: int
    splits: int

    def grid(self, positions: int, objects: int, value_dim: int) -> tuple[int, int, int]:
        """Blocks over (queries, value columns, splits)."""
        return (
            cdiv(positions, self.block_m),
            cdiv(objects * value_dim, self.block_v),
            self.splits,
        )


def cdiv(a: int, b: int) -> int:
    """⌈a/b⌉."""
    return -(-a // b)


@functools.cache
def table() -> dict[str, dict[str, dict[str, Tile]]]:
    """``tiles.json``, as op → architecture → shape class → tile."""
    raw: dict[str, Any] = json.loads(TABLE_FILE.read_text())
    return {
        op: {
            arch: {
                name: Tile(tuple(t["block"]), t["warps"], t["stages"], t["resident"])
                for name, t in classes.items()
            }
            for arch, classes in archs.items()
        }
        for op, archs in raw.items()
    }


def nearest_arch(major: int, minor: int) -> str:
    """The table's architecture for a compute capability: the newest that is not newer.

    >>> nearest_arch(8, 6), nearest_arch(12, 1)
    ('sm_86', 'sm_120')
    """
    known = [name for name in SHARED_LIMIT if int(name[3:]) <= major * 10 + minor]
    if not known:
        raise ValueError(f"compute capability {major}.{minor}: Triton kernels need 7.5 or newer")
    return known[-1]


def read_class(dtype: str, key_dim: int, value_dim: int, block_v: int) -> str:
    """The shape class of a memory read. ``dtype``: ``"fp16"`` or ``"fp32"``.

    >>> read_class("fp16", 64, 512, block_v=128), read_class("fp16", 64, 64, block_v=128)
    ('fp16 ck64 v128', 'fp16 ck64 v2x64')
    """
    shared = block_v > value_dim
    columns = f"{block_v // value_dim}x{value_dim}" if shared else str(block_v)
    return f"{dtype} ck{key_dim} v{columns}"


def value_block(dtype: str, objects: int, value_dim: int) -> int:
    """Value columns for one block: 128 in fp16 where one object, or two that share, fill them.

    fp32 has no tensor cores to feed, and 128 columns of it would spill.
    """
    wide = value_dim % 128 == 0 or (value_dim == 64 and objects > 1)
    return 128 if dtype == "fp16" and wide else 64


def choose_splits(blocks: int, steps: int, multiprocessors: int, resident: int) -> int:
    """The cheapest number of memory splits, by the occupancy model of the README.

    blocks: blocks of one split; steps: memory tiles of an object, R·⌈N/block_n⌉.

    With s splits a multiprocessor gets b = ⌈blocks·s/multiprocessors⌉ blocks, runs at most
    ``resident`` of them at once, and so needs ⌈b/resident⌉ rounds of ⌈steps/s⌉ + START tiles. A
    tile takes as long as the c = min(b, resident) blocks that share the multiprocessor, and never
    less than ALONE.

    >>> choose_splits(blocks=26, steps=102, multiprocessors=84, resident=3)
    6
    """
    best, best_cost = 1, 0
    for s in range(1, max(1, min(SPLIT_LIMIT, steps)) + 1):
        b = cdiv(blocks * s, multiprocessors)
        rounds = cdiv(b, resident)
        cost = rounds * (cdiv(steps, s) + START) * max(ALONE, min(b, resident))
        if s > 1:
            cost += MERGE + s
        if s == 1 or cost < best_cost:
            best, best_cost = s, cost
    return best


def tile_memory_read(
    dtype: str,
    positions: int,
    key_dim: int,
    value_dim: int,
    objects: int,
    reads: int,
    *,
    arch: str,
    multiprocessors: int,
) -> ReadTiling:
    """The launch of ``memory_read`` for a shape on a card: a tile by table, splits by model."""
    block_v = value_block(dtype, objects, value_dim)
    tile = table()["memory_read"][arch][read_class(dtype, key_dim, value_dim, block_v)]
    block_m, block_n = tile.block
    blocks = cdiv(positions, block_m) * cdiv(objects * value_dim, block_v)
    steps = reads * cdiv(positions, block_n)
    splits = choose_splits(blocks, steps, multiprocessors, tile.resident)
    return ReadTiling(block_m, block_n, block_v, tile.warps, tile.stages, splits)
