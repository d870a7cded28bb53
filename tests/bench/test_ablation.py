"""The ablation: its variants, its table, and a whole run that is taken up again."""

from __future__ import annotations

import dataclasses
import json

import pytest
from helpers.training import training_folder

from bench import ablation
from engine.train.loop import Trainer
from engine.train.recipes import CONFIGS

SMALL = dataclasses.replace(
    CONFIGS["noaspp"],
    phases=tuple(dataclasses.replace(p, size=(64, 96)) for p in CONFIGS["smoke"].phases),
)


def test_a_short_run_warms_up_shortly():
    assert ablation.shorten(CONFIGS["mobilenetv2"], 100).warmup == 10
    assert ablation.shorten(CONFIGS["mobilenetv2"], 10000).warmup == 40


@pytest.mark.slow
def test_an_ablation_from_end_to_end(tmp_path, monkeypatch, capsys):
    pytest.importorskip("vos_benchmark")
    data = training_folder(tmp_path / "data")
    monkeypatch.setitem(ablation.CONFIGS, "small", SMALL)
    steps = []
    train_step = Trainer.train_step
    monkeypatch.setattr(
        Trainer, "train_step", lambda self: steps.append(self.config.distil) or train_step(self)
    )
    options = ["--config", "small", "--davis", data / "davis", "--stills", data / "stills",
               "--out", tmp_path, "--steps", 2, "--sequences", "bus", "--size", 96,
               "--threads", 1]  # fmt: skip

    def run(*only: int) -> list[str]:
        assert ablation.main([str(x) for x in [*options, "--only", *only]]) == 0
        return (tmp_path / "ablation.md").read_text().splitlines()

    first = run(0)
    assert [line.split(" | ")[0] for line in first[2:6]] == [
        "| variant", "|---|---|---|---|---|---|---|", "| the start", "| no distillation",
    ]  # fmt: skip
    assert len(steps) == 2
    both = run(0, 3)
    assert len(steps) == 4, "what is finished is not trained again"
    assert both[4:6] == first[4:6] and both[6].startswith("| + L_repr, ω = 0.95 |")
    assert steps[2].representation > 0
    row = json.loads((tmp_path / "variant-3" / "scores.json").read_text())
    assert row["jf"] == pytest.approx((row["j"] + row["f"]) / 2)
    assert list(row["objects"]) == ["bus/1", "bus/2"]
    base = json.loads((tmp_path / "variant-0" / "scores.json").read_text())
    cells = [cell.strip() for cell in both[6].strip("|").split("|")]
    assert cells[1:5] == [
        f"{row['jf']:.3f}", f"{row['j']:.3f}", f"{row['f']:.3f}", f"{row['jf'] - base['jf']:+.3f}",
    ]  # fmt: skip
    assert "2 steps each, seed 0" in both[0]


@pytest.mark.parametrize(("options", "says"), [
    (["--config", "mobilenetv2-first"], "choose one of: noaspp, resnet18"),
    (["--only", "6"], "--only takes 0 to 5"),
    (["--steps", "0"], "--steps 1 or more"),
])  # fmt: skip
def test_what_cannot_be_ablated(tmp_path, capsys, options, says):
    given = ["--davis", "d", "--stills", "s", "--out", str(tmp_path), *options]
    assert ablation.main(given) == 2
    assert says in capsys.readouterr().err
