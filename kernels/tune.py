"""``python -m kernels.tune``: measure tiles on this GPU and rewrite its entries of ``tiles.json``.

Candidates that spill, or do not fit, are dropped before anything runs; of the others the fastest at
480×864 wins. Nearly all of the time, some half an hour, goes into compiling. After it, look at the
change in version control, and run
``MVOS_UPDATE_GOLDEN=1 pytest tests/kernels/test_compile_gate.py``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kernels import aot, tiles

POSITIONS, READS = 1620, 2
READ_BLOCKS = tuple(itertools.product((16, 32, 64, 128), (16, 32, 64, 128)))
PIXEL_BLOCKS = (64, 128, 256, 512)
WARPS = (4, 8)
STAGES = (1, 2, 3)
LAUNCHES = 50

#: Seconds for one launch of (op, shape class, tile).
Measure = Callable[[str, str, tiles.Tile], float]


def candidates(op: str) -> Iterator[tiles.Tile]:
    """Every tile that is tried for an operation."""
    if op == "memory_read":
        for block, warps, stages in itertools.product(READ_BLOCKS, WARPS, STAGES):
            yield tiles.Tile(block, warps, stages, 0)
    else:
        for pixels, warps in itertools.product(PIXEL_BLOCKS, WARPS):
            yield tiles.Tile((pixels,), warps, 1, 0)


def variant_of(op: str, shape_class: str, target: str) -> aot.Variant:
    """The compiled form of a shape class."""
    if op == "preprocess":
        return aot.preprocess_variant(target, "fp16")
    if op == "mask_head":
        return aot.mask_head_variant(target, "fp32")
    dtype, key_dim, value_dim, block_v = parse_class(shape_class)
    return aot.memory_read_variant(target, dtype, key_dim, value_dim, block_v)


def parse_class(shape_class: str) -> tuple[str, int, int, int]:
    """The inverse of ``tiles.read_class``: dtype, Ck, a Cv, value columns of a block.

    >>> parse_class("fp16 ck64 v2x64")
    ('fp16', 64, 64, 128)
    """
    found = re.fullmatch(r"(\w+) ck(\d+) v(?:(\d+)x)?(\d+)", shape_class)
    if found is None:
        raise ValueError(f"no shape class of memory_read: {shape_class!r}")
    dtype, key_dim, objects, columns = found.groups()
    return dtype, int(key_dim), int(columns), int(columns) * int(objects or 1)


def resident(op: str, shape_class: str, tile: tiles.Tile, target: str) -> int:
    """Blocks of the tile that fit on a multiprocessor; 0 if it spills or does not compile."""
    base = variant_of(op, shape_class, target)
    names = ("BLOCK_M", "BLOCK_N") if op == "memory_read" else ("BLOCK",)
    constants = dict(base.constants) | dict(zip(names, tile.block, strict=True))
    fields = vars(base) | {
        "constants": tuple(constants.items()),
        "warps": tile.warps,
        "stages": tile.stages,
    }
    try:
        found = aot.compile_variant(aot.Variant(**fields), target).resources
    except Exception as error:  # Triton has many ways to refuse a tile
        print(f"  {tile}: {type(error).__name__}", file=sys.stderr)
        return 0
    return 0 if found.spills else found.resident


def tune(raw: dict[str, Any], target: str, measure: Measure, fit: Callable[..., int]) -> None:
    """Replace the entries of ``target`` in ``raw`` by the fastest candidates."""
    for op, archs in raw.items():
        for shape_class in archs[target]:
            best, best_time = None, float("inf")
            for tile in candidates(op):
                blocks = fit(op, shape_class, tile, target)
                if blocks == 0:
                    continue
                fitting = tiles.Tile(tile.block, tile.warps, tile.stages, blocks)
                seconds = measure(op, shape_class, fitting)
                if seconds < best_time:
                    best, best_time = fitting, seconds
            if best is None:
                raise RuntimeError(f"no tile fits {op} {shape_class} on {target}")
            print(f"{op} {shape_class}: {best}, {1e6 * best_time:.1f} us")
            archs[target][shape_class] = {
                "block": list(best.block),
                "warps": best.warps,
                "stages": best.stages,
                "resident": best.resident,
            }


def write_table(raw: dict[str, Any], file: Path) -> None:
    """Write the table with one tile a line, so that changes read well."""
    ops = []
    for op, archs in raw.items():
        groups = []
        for arch, classes in archs.items():
            lines = [f"   {json.dumps(n)}: {json.dumps(t)}" for n, t in classes.items()]
            groups.append(f"  {json.dumps(arch)}: {{\n" + ",\n".join(lines) + "\n  }")
        ops.append(f" {json.dumps(op)}: {{\n" + ",\n".join(groups) + "\n }")
    file.write_text("{\n" + ",\n".join(ops) + "\n}\n")


def measure_on_gpu(op: str, shape_class: str, tile: tiles.Tile) -> float:
    """Seconds a launch, from a replayed CUDA graph: launch overhead on the host is left out."""
    import torch

    run = _launcher(op, shape_class, tile)
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            run()
    times: list[float] = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3 / LAUNCHES)
    return sorted(times)[len(times) // 2]


def _launcher(op: str, shape_class: str, tile: tiles.Tile) -> Callable[[], object]:
    import torch

    if op == "preprocess":
        from kernels.preprocess.triton_impl import preprocess_triton

        frame = torch.randint(0, 256, (720, 1280, 3), dtype=torch.uint8, device="cuda")
        network = torch.empty(1, 3, 480, 864, dtype=torch.float16, device="cuda")
        return lambda: preprocess_triton(frame, 480, 853, network, tile)
    if op == "mask_head":
        from kernels.mask_head.triton_impl import mask_head_triton

        probabilities = torch.rand(2, 480, 864, device="cuda")
        ids = torch.arange(2, dtype=torch.uint8, device="cuda")
        mask = torch.empty(720, 1280, dtype=torch.uint8, device="cuda")
        return lambda: mask_head_triton(probabilities, ids, (480, 853), mask, tile)

    from kernels.memory_read.triton_impl import memory_read_triton

    name, key_dim, value_dim, block_v = parse_class(shape_class)
    dtype = torch.float16 if name == "fp16" else torch.float32
    objects = max(1, block_v // value_dim)
    query = torch.randn(POSITIONS, key_dim, dtype=dtype, device="cuda")
    keys = torch.randn(READS, POSITIONS, key_dim, dtype=dtype, device="cuda")
    values = torch.randn(READS, objects, POSITIONS, value_dim, dtype=dtype, device="cuda")
    slots = torch.arange(READS, dtype=torch.int32, device="cuda").repeat(objects, 1)
    out = torch.empty(objects, POSITIONS, value_dim, dtype=dtype, device="cuda")
    block_m, block_n = tile.block
    blocks = tiles.cdiv(POSITIONS, block_m) * tiles.cdiv(objects * value_dim, block_v)
    steps = READS * tiles.cdiv(POSITIONS, block_n)
    multiprocessors = torch.cuda.get_device_properties("cuda").multi_processor_count
    splits = tiles.choose_splits(blocks, steps, multiprocessors, tile.resident)
    plan = tiles.ReadTiling(block_m, block_n, block_v, tile.warps, tile.stages, splits)
    return lambda: memory_read_triton(query, keys, values, slots, out, plan)


def main(arguments: list[str] | None = None) -> int:
    """The command line; 2 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels.tune", description="Measure tiles on a GPU and rewrite tiles.json."
    )
    parser.parse_args(arguments)
    try:
        import torch
    except ImportError:
        torch = None  # type: ignore[assignment]
    if torch is None or not torch.cuda.is_available():
        print(
            "kernels.tune measures, so it needs an NVIDIA GPU and a CUDA build of PyTorch; neither "
            "is needed to use the table that ships (kernels/tiles.json)",
            file=sys.stderr,
        )
        return 2
    target = tiles.nearest_arch(*torch.cuda.get_device_capability())
    raw = json.loads(tiles.TABLE_FILE.read_text())
    tune(raw, target, measure_on_gpu, resident)
    write_table(raw, tiles.TABLE_FILE)
    print(f"wrote {tiles.TABLE_FILE}: {target}, {torch.cuda.get_device_name()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
