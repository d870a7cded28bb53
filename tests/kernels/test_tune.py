"""``python -m kernels.tune`` without a GPU: what it says, and how it would rewrite the table."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from kernels import tiles, tune


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_says_that_it_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    before = tiles.TABLE_FILE.read_bytes()
    assert tune.main([]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
    assert tiles.TABLE_FILE.read_bytes() == before


def test_the_fastest_that_fits_wins(tmp_path: Path) -> None:
    """Measured times and fit are made up here; only the target's entries may change."""
    raw = json.loads(tiles.TABLE_FILE.read_text())
    before = copy.deepcopy(raw)

    def measure(op: str, shape_class: str, tile: tiles.Tile) -> float:
        return 1.0 / (tile.block[0] * tile.warps) + 1e-6 * tile.stages

    def fit(op: str, shape_class: str, tile: tiles.Tile, target: str) -> int:
        return 0 if tile.block[0] > 64 else 5

    tune.tune(raw, "sm_89", measure, fit)
    for op, archs in raw.items():
        for arch, classes in archs.items():
            assert (classes == before[op][arch]) == (arch != "sm_89")
            assert list(classes) == list(before[op][arch])
    chosen = raw["memory_read"]["sm_89"]["fp16 ck64 v64"]
    assert (chosen["block"][0], chosen["warps"], chosen["stages"]) == (64, 8, 1)
    assert chosen["resident"] == 5
    tune.write_table(raw, tmp_path / "tiles.json")
    assert json.loads((tmp_path / "tiles.json").read_text()) == raw


def test_the_table_is_as_tune_writes_it(tmp_path: Path) -> None:
    tune.write_table(json.loads(tiles.TABLE_FILE.read_text()), tmp_path / "tiles.json")
    assert (tmp_path / "tiles.json").read_bytes() == tiles.TABLE_FILE.read_bytes()


def test_a_tile_that_spills_does_not_fit() -> None:
    """The smallest compiled check of ``resident``: the shipped tile fits, a greedy one does not."""
    shipped = tiles.table()["memory_read"]["sm_75"]["fp16 ck64 v64"]
    assert tune.resident("memory_read", "fp16 ck64 v64", shipped, "sm_75") == shipped.resident
    greedy = tiles.Tile((64, 64), 4, 2, 0)
    assert tune.resident("memory_read", "fp16 ck64 v64", greedy, "sm_75") == 0
