"""The command with the real segmenter and its shipped weights: the parts fit together."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.media import make_mask, make_video, picture
from PIL import Image

import engine.commands.loop
from engine import Segmenter
from engine.cli import main

MODEL = "mobilevos-mobilenetv2-noaspp"


@pytest.fixture
def segment():
    def run(source, mask, out, *more):
        options = ["--mask", mask, "--out", out, "--model", MODEL, *more]
        return main(["segment", str(source), *map(str, options), "--backend", "cpu"])

    return run


def masks(folder):
    return {p.name: p.read_bytes() for p in sorted((folder / "masks").glob("*.png"))}


def test_interrupted_and_resumed(segment, tmp_path, monkeypatch):
    video = make_video(tmp_path / "v.mp4", 10, (96, 128))
    mask = make_mask(tmp_path / "m.png", (96, 128), value=7)
    monkeypatch.setattr(engine.commands.loop, "RESUME_SECONDS", 0.0)
    step, calls = Segmenter.step, []

    def stop(self, frame):
        calls.append(frame)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self, frame)

    monkeypatch.setattr(Segmenter, "step", stop)
    assert segment(video, mask, tmp_path / "out") == 130
    monkeypatch.setattr(Segmenter, "step", step)
    assert segment(video, mask, tmp_path / "out", "--resume") == 0
    assert segment(video, mask, tmp_path / "whole") == 0
    assert len(masks(tmp_path / "out")) == 10
    assert masks(tmp_path / "out") == masks(tmp_path / "whole")
    lost = [
        json.loads((tmp_path / d / "summary.json").read_text())["frames_lost"]
        for d in ("out", "whole")
    ]
    assert lost[0] == lost[1] and lost[0].keys() == {"7"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["frames"] == 10 and summary["frames_resumed"] == 6
    assert summary["backend"] == "cpu" and summary["p50_ms"] > 0 and summary["model"] == MODEL


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (37, 53)])
def test_odd_sizes(segment, tmp_path, size):
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(2):
        Image.fromarray(picture(index, size)).save(folder / f"{index}.png")
    ids = np.zeros(size, np.uint8)
    ids[: size[0] // 2 + 1, : size[1] // 2 + 1] = 1
    Image.fromarray(ids).save(tmp_path / "m.png")
    assert segment(folder, tmp_path / "m.png", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "masks" / "00001.png") as last:
        assert last.size == size[::-1] and set(np.unique(last)) <= {0, 1}


@pytest.mark.parametrize("option", ["--model", "--backend"])
def test_model_or_backend_that_is_not_there(tmp_path, capsys, option):
    video, mask = make_video(tmp_path / "v.mp4", 2), make_mask(tmp_path / "m.png")
    options = ["--mask", mask, "--out", tmp_path / "out", option, "nonsense"]
    assert main(["segment", str(video), *map(str, options)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and "nonsense" in error
