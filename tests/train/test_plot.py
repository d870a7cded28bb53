"""Training curves from the trainer's logs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.train import plot


def write_log(path: Path, steps: int, tail: str = "") -> Path:
    path.parent.mkdir(exist_ok=True)
    rows = [
        {"step": s, "loss": 2 / s, "cross_entropy": 1 / s, "dice": 1 / s, "iou": 0.5, "rate": 1.0}
        for s in range(1, steps + 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return path


def test_curves_of_two_runs(tmp_path, capsys):
    logs = [write_log(tmp_path / "a" / "log.jsonl", 40, '{"step": 41, "lo'),
            write_log(tmp_path / "b" / "log.jsonl", 1)]  # fmt: skip
    out = tmp_path / "new" / "curves.png"
    assert plot.main([*map(str, logs), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    with Image.open(out) as image:
        assert image.width > 500 and np.asarray(image.convert("L")).std() > 1
    assert list(plot.read_log(logs[0])["step"]) == list(range(1, 41))


def test_smoothing():
    x = np.array([1.0, 5.0, 3.0, 7.0])
    np.testing.assert_allclose(plot.smooth(x, 1), x)
    np.testing.assert_allclose(plot.smooth(x, 3), [3, 3, 5, 5])
    np.testing.assert_allclose(plot.smooth(np.full(9, 2.5), 50), 2.5)


@pytest.mark.parametrize("text", [None, "", "step 1\nstep 2\n", '{"step": 1}\n{"step": 2}\n'])
def test_logs_without_curves(tmp_path, capsys, text):
    log = tmp_path / "log.jsonl"
    if text is not None:
        log.write_text(text)
    assert plot.main([str(log), "--out", str(tmp_path / "c.png")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and "log.jsonl" in error
    assert not (tmp_path / "c.png").exists()
