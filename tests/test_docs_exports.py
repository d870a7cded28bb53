"""The programs in docs/exports.md, as they are pasted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from helpers.media import make_video
from PIL import Image

from engine.media.exports import FORMATS
from engine.media.masks import write_mask
from engine.media.record import read_records


@pytest.fixture
def blocks(tmp_path, monkeypatch):
    """The page's programs, in a folder with ``video.mp4`` and results of two frames."""
    make_video(tmp_path / "video.mp4", frames=2)
    (tmp_path / "mobilevos-out" / "masks").mkdir(parents=True)
    ids = np.zeros((48, 64), np.uint8)
    ids[5:9, 8:24], ids[20:30, :2] = 3, 7
    for i in range(2):
        write_mask(tmp_path / "mobilevos-out" / "masks" / f"{i:05d}.png", ids * np.uint8(1 - i))
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_frames_get_the_names_that_exports_mention(blocks):
    exec(blocks[0], {})
    labels = {Path(p).stem for p, _ in FORMATS["yolo"].write(read_records("mobilevos-out"))}
    images = list(Path("mobilevos-out/exports/yolo/images").iterdir())
    assert {p.stem for p in images} == labels - {"data"} == {"00000", "00001"}
    assert all(Image.open(p).size == (64, 48) for p in images)


def test_supervision_gets_masks_boxes_and_ids(blocks, capsys):
    pytest.importorskip("supervision")
    pytest.importorskip("supervision")
    names: dict = {}
    exec(blocks[1], names)
    assert capsys.readouterr().out == "0 [64 20]\n1 []\n"
    found = names["detections"](next(read_records("mobilevos-out")))
    assert found.xyxy.tolist() == [[8, 5, 24, 9], [0, 20, 2, 30]]
    assert found.tracker_id.tolist() == [3, 7] and found.mask.sum() == 84
