"""``segment --export`` and the command ``export``, with a segmenter that needs no weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.media import FakeSegmenter, make_mask, make_video
from PIL import Image

from engine.cli import main
from engine.media.exports import FORMATS
from engine.segmenter import Segmenter


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(Segmenter, "load", lambda options: FakeSegmenter())
    return tmp_path / "out"


@pytest.fixture
def segment(tmp_path, out):
    video, mask = make_video(tmp_path / "v.mp4"), make_mask(tmp_path / "m.png")
    return ["segment", str(video), "--mask", str(mask), "--out", str(out), "--no-overlay"]


def exports(out):
    files = sorted(p for p in (out / "exports").rglob("*") if p.is_file())
    return {str(p.relative_to(out / "exports")): p.read_bytes() for p in files}


def test_segment_exports_what_export_exports(segment, out, capsys):
    names = ",".join(FORMATS)
    assert main([*segment, "--export", names]) == 0
    told, made = capsys.readouterr(), exports(out)
    assert len(made) == 4 + 12 + 1 + 12 and str(out / "exports" / "coco.json") in told.out
    assert main(["export", str(out), "--format", names, "--overwrite"]) == 0
    assert exports(out) == made
    line = json.loads(made["records.jsonl"].splitlines()[-2])
    assert (line["frame"], line["time"], line["object"]) == (11, pytest.approx(0.44, abs=1e-3), 1)
    assert line["confidence"] == 0.75 and line["lost"] is False and line["area"] == 256
    line = json.loads(made["records.jsonl"].splitlines()[-1])
    assert line["object"] == 7 and line["lost"] is True and line["area"] == 0


def test_a_finished_run_exports_with_resume(segment, out):
    assert main(segment) == 0
    assert not (out / "exports").exists()
    assert main([*segment, "--resume", "--export", "coco"]) == 0
    assert list(exports(out)) == ["coco.json"]


def test_an_export_is_not_replaced_unless_told(segment, out, capsys):
    assert main(segment) == 0
    command = ["export", str(out), "--format", "coco,labelme"]
    assert main(command) == 0
    before = exports(out)
    mine = out / "exports" / "labelme" / "00003.json"
    mine.write_text("corrected by hand")
    (mine.parent / "00003.png").write_text("the frame")
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and "--overwrite" in error[0] and "--resume" in error[0]
    (mine.parent / "00004.json").unlink()
    assert main([*command, "--resume"]) == 0
    assert mine.read_text() == "corrected by hand"
    assert exports(out)["labelme/00004.json"] == before["labelme/00004.json"]
    assert main([*command, "--overwrite"]) == 0
    assert exports(out).pop("labelme/00003.png") == b"the frame"
    assert {k: v for k, v in exports(out).items() if k != "labelme/00003.png"} == before


def test_a_new_run_takes_the_old_exports_away(segment, out, capsys):
    assert main([*segment, "--export", "yolo,csv"]) == 0
    for path in (out / "masks").iterdir():
        path.unlink()
    (out / "summary.json").unlink()
    assert main(segment) == 2 and "--overwrite" in capsys.readouterr().err
    assert main([*segment, "--overwrite", "--end", "3", "--export", "yolo"]) == 0
    labels = [f"yolo/labels/{i:05d}.txt" for i in range(3)]
    assert list(exports(out)) == ["yolo/data.yaml", *labels]


def test_an_unfinished_run_is_exported_with_a_note(segment, out, capsys):
    assert main(segment) == 0
    (out / ".resume.npz").write_bytes(b"")
    assert main(["export", str(out), "--format", "csv"]) == 0
    assert "unfinished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--format", "coco"], "no masks|cannot be read"),
        (["--format", "pascal"], "choose from coco"),
        (["--format", ""], "choose from coco"),
        (["--format", "csv", "--resume", "--overwrite"], "exclude each other"),
        ([], "--format"),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_wrong_uses_are_one_line(tmp_path, capsys, arguments, word, there):
    if there:
        (tmp_path / "masks").mkdir()
    try:
        code = main(["export", str(tmp_path), *arguments])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and any(w in error for w in word.split("|")), error
    assert not (tmp_path / "exports").exists()


def test_a_damaged_mask_leaves_no_half_export(segment, out, capsys):
    assert main(segment) == 0
    mask = out / "masks" / "00005.png"
    mask.write_bytes(mask.read_bytes()[:60])
    assert main(["export", str(out), "--format", "coco"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and "00005.png" in error[0] and exports(out) == {}


def test_a_file_in_the_way_of_the_exports_is_one_line(segment, out, capsys):
    assert main(segment) == 0
    (out / "exports").write_text("")
    assert main(["export", str(out), "--format", "coco"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and "exports" in error[0]


def test_masks_of_an_edited_run_are_exported_as_they_are(segment, out):
    assert main(segment) == 0
    edited = np.zeros((48, 64), np.uint8)
    edited[1:3, 1:4] = 200
    Image.fromarray(edited).save(out / "masks" / "00002.png")
    assert main(["export", str(out), "--format", "jsonl"]) == 0
    lines = [json.loads(line) for line in exports(out)["records.jsonl"].splitlines()]
    (line,) = [line for line in lines if line["frame"] == 2]
    assert line["object"] == 200 and line["area"] == 6 and line["confidence"] is None
