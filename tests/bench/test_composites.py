"""Two-object composites: the pasting, the layout, and refusals."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from engine.data.davis import Dataset, load_truth
from engine.errors import InputError

spec = importlib.util.spec_from_file_location("composites", ROOT / "bench" / "composites.py")
composites = importlib.util.module_from_spec(spec)
spec.loader.exec_module(composites)


def test_pasting():
    a, b = np.full((20, 30, 3), 40, np.uint8), np.full((20, 30, 3), 200, np.uint8)
    mask_a, mask_b = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    mask_a[2:12, 2:12] = 1
    mask_b[6:18, 6:18] = 255
    frame, ids = composites.paste(a, mask_a, b, mask_b)
    assert (ids == 2).sum() == 144 and (ids[6:12, 6:12] == 2).all(), "b's object is in front"
    assert (ids == 1).sum() == 100 - 36
    assert (frame[9:15, 9:15] == 200).all() and (frame[:2] == 40).all()
    with pytest.raises(InputError, match="30x20 and 30x10 cannot be pasted"):
        composites.paste(a, mask_a, b[:10], mask_b[:10])


def test_a_folder_that_evaluate_takes(tmp_path, rng, capsys):
    for name, count, value in (("one", 5, 1), ("two", 4, 255)):
        for kind in ("JPEGImages", "Annotations"):
            (tmp_path / "in" / kind / "480p" / name).mkdir(parents=True)
        for i in range(count):
            frame = rng.integers(0, 256, (24, 40, 3), np.uint8)
            mask = np.zeros((24, 40), np.uint8)
            mask[4 + i : 12 + i, 4 * len(name) : 24] = value
            where = tmp_path / "in"
            Image.fromarray(frame).save(where / f"JPEGImages/480p/{name}/{i:05d}.jpg")
            Image.fromarray(mask).save(where / f"Annotations/480p/{name}/{i:05d}.png")
    options = ["--davis", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert composites.main(["one+two", *options]) == 0
    assert capsys.readouterr().out == "one+two: 4 frames\n"
    made = Dataset.find(tmp_path / "out")
    assert made.sequences(None) == ["one+two"]
    _, masks = made.frames("one+two")
    assert len(masks) == 4, "as long as the shorter"
    assert set(np.unique(load_truth(masks[0]))) <= {0, 1, 2}
    assert (load_truth(masks[3]) == 2).any()

    assert composites.main(["one", *options]) == 2
    assert "write two sequences as A+B" in capsys.readouterr().err
    assert composites.main(["one+nine", *options]) == 2
    assert "no sequence nine" in capsys.readouterr().err
