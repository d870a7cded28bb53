"""The figures in the memory read's README are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

from kernels import tiles
from kernels.memory_read import roofline

FOLDER = Path(roofline.__file__).parent
TEXT = (FOLDER / "README.md").read_text()
GOLDEN = Path(__file__).parent / "golden" / "resources.json"


def test_the_bounds_are_those_of_the_model() -> None:
    assert roofline.table() in TEXT


def test_the_code_table_is_that_of_the_golden_file() -> None:
    variants = {"64": ("v64", "v64"), "2×64": ("v128", "v2x64")}
    rows = re.findall(r"^\| (sm_\d+) \| (64|2×64) \| (.*) \|$", TEXT, re.MULTILINE)
    golden = json.loads(GOLDEN.read_text())["targets"]
    assert len(rows) == 2 * len(golden)
    for target, columns, cells in rows:
        name, shape_class = variants[columns]
        r = golden[target][f"memory_read-fp16-ck64-cv64-{name}"]
        tile = tiles.table()["memory_read"][target][f"fp16 ck64 {shape_class}"]
        assert cells.split(" | ") == [
            f"{tile.block[0]}×{tile.block[1]}",
            *(str(n) for n in (tile.warps, r["registers"], r["spills"])),
            *(str(n) for n in (r["shared"], r["tensor_core"])),
            f"{r['wide_loads']} of {r['loads']}",
            str(r["resident"]),
            f"{round(100 * r['occupancy'])} %",
        ]


def test_the_split_table_is_that_of_the_model() -> None:
    for card, arch, multiprocessors in (
        ("A40, 84 multiprocessors", "sm_86", 84),
        ("RTX 4090, 128", "sm_89", 128),
        ("H100, 132", "sm_90", 132),
    ):
        row = re.search(rf"^\| {card} \| (.*) \|$", TEXT, re.MULTILINE)
        assert row is not None
        for cell, objects in zip(row.group(1).split(" | "), (1, 2, 4, 8), strict=True):
            plan = tiles.tile_memory_read(
                "fp16", 1620, 64, 64, objects, 2, arch=arch, multiprocessors=multiprocessors
            )
            x, y, z = plan.grid(1620, objects, 64)
            assert [int(n) for n in re.findall(r"\d+", cell)] == [plan.splits, x * y * z]


def test_counts() -> None:
    work = roofline.count("fp16", 1620, 64, 64, 1, 2)
    assert work.flops == 2 * 1620 * 3240 * 128
    assert work.fused_bytes == 2 * 64 * (1620 + 3240 + 3240 + 1620)
    # Two objects that share an affinity: a second product with the values, no second softmax.
    both = roofline.count("fp16", 1620, 64, 64, 2, 2)
    assert both.flops == work.flops + 2 * 1620 * 3240 * 64
    assert both.exponentials == work.exponentials
    assert work.eager_bytes - work.fused_bytes == 4 * 2 * 1620 * 3240
