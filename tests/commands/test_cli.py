"""The commands as a user meets them, with a segmenter that needs no weights."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from helpers import ROOT
from helpers.media import SIZE, FakeSegmenter, make_mask, make_video, picture
from PIL import Image

import engine.commands.loop
import engine.commands.segment
import engine.data.demo
from engine import __version__
from engine.cli import build_parser, main
from engine.commands.prompt import mask_from_box
from engine.errors import MissingExtraError
from engine.media.masks import read_mask
from engine.media.open import open_source
from engine.media.source import Frame
from engine.segmenter import Segmenter
from engine.threads import Prefetcher


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The fake segmenters that the runs made, in order; each run gets a fresh one."""
    made: list[FakeSegmenter] = []

    def load(options):
        made.append(FakeSegmenter())
        return made[-1]

    monkeypatch.setattr(Segmenter, "load", load)
    return made


@pytest.fixture
def command(tmp_path, made):
    video, mask = make_video(tmp_path / "v.mp4"), make_mask(tmp_path / "m.png")
    return ["segment", str(video), "--mask", str(mask), "--out", str(tmp_path / "out")]


def masks(folder):
    return {p.name: p.read_bytes() for p in sorted((folder / "masks").glob("*.png"))}


def summary(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_each_frame_is_announced_while_the_one_before_is_segmented(command, made, monkeypatch):
    def wait(frames):
        with frames._changed:
            frames._changed.wait_for(lambda: frames._items or frames._finished)
            return frames._items[0] if frames._items else None

    monkeypatch.setattr(Prefetcher, "peek", wait)
    assert main(command) == 0
    assert made[0].hints == made[0].frames - 1 > 0


def test_a_warning_is_one_line(command, monkeypatch, capsys):
    def load(options):
        warnings.warn("slower,\nsince it is so", RuntimeWarning, stacklevel=2)
        return FakeSegmenter()

    monkeypatch.setattr(Segmenter, "load", load)
    assert main(command) == 0
    assert "warning: slower, since it is so" in capsys.readouterr().err.splitlines()


def test_version_and_help():
    for flag, word in [("--version", __version__), ("--help", "segment"), ("", "COMMAND")]:
        run = subprocess.run(
            [sys.executable, "-m", "engine", *flag.split()], capture_output=True, text=True,
            cwd=ROOT, check=False,
        )  # fmt: skip
        assert word in run.stdout + run.stderr and "Traceback" not in run.stderr
        assert run.returncode == (0 if flag else 2)


def test_segment_writes_masks_overlay_and_summary(command, tmp_path, capsys):
    assert main(command) == 0
    out = tmp_path / "out"
    assert list(masks(out)) == [f"{i:05d}.png" for i in range(12)]
    with Image.open(out / "masks" / "00000.png") as first:
        assert first.mode == "P" and first.size == SIZE[::-1]
        np.testing.assert_array_equal(np.array(first), read_mask(tmp_path / "m.png").ids)
    overlay = list(open_source(str(out / "overlay.mp4")).frames())
    assert [f.time for f in overlay] == pytest.approx([i / 25 for i in range(12)], abs=1e-3)
    told = summary(out)
    assert told["status"] == "complete" and told["frames"] == 12 and told["last_frame"] == 11
    assert told["model"] == "fake" and told["backend"] == "cpu" and told["model_hash"]
    assert {"fps", "p50_ms", "p99_ms", "fps_total"} <= told.keys()
    assert {"mobilevos-engine", "numpy", "onnxruntime", "av"} <= told["versions"].keys()
    assert sorted(p.name for p in out.iterdir()) == ["masks", "overlay.mp4", "summary.json"]
    printed = capsys.readouterr().out
    assert str(out / "overlay.mp4") in printed and "12 frames" in printed


def test_masks_are_named_by_frame(command, tmp_path):
    assert main([*command, "--start", "2", "--end", "10", "--every", "3", "--no-overlay"]) == 0
    assert list(masks(tmp_path / "out")) == ["00002.png", "00005.png", "00008.png"]
    assert not (tmp_path / "out" / "overlay.mp4").exists()


def test_every_nth_frame_plays_at_the_same_speed(command, tmp_path):
    assert main([*command, "--every", "4"]) == 0
    overlay = open_source(str(tmp_path / "out" / "overlay.mp4"))
    assert [f.time for f in overlay.frames()] == pytest.approx([0, 0.16, 0.32], abs=1e-3)


def test_earlier_results_are_kept_unless_told(command, tmp_path, capsys):
    assert main([*command, "--end", "5"]) == 0
    before = masks(tmp_path / "out")
    (tmp_path / "out" / "masks" / "notes.txt").write_text("mine")
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err and masks(tmp_path / "out") == before
    assert main([*command, "--overwrite", "--mask", str(tmp_path / "typo.png")]) == 2
    assert masks(tmp_path / "out") == before
    assert main([*command, "--overwrite", "--start", "7"]) == 0
    assert list(masks(tmp_path / "out")) == [f"{i:05d}.png" for i in range(7, 12)]
    assert (tmp_path / "out" / "masks" / "notes.txt").exists()


def test_a_backend_that_cannot_run_costs_no_earlier_results(command, tmp_path, monkeypatch):
    assert main([*command, "--end", "5"]) == 0
    before = masks(tmp_path / "out")

    def fail(options):
        raise MissingExtraError("backend 'reference'", "torch", "reference")

    monkeypatch.setattr(Segmenter, "load", fail)
    assert main([*command, "--overwrite"]) == 2
    assert before and masks(tmp_path / "out") == before
    assert (tmp_path / "out" / "overlay.mp4").exists()


def test_resume_of_nothing_and_of_a_finished_run(command, made, tmp_path, capsys):
    assert main([*command, "--resume"]) == 0
    assert "nothing to resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert "complete" in capsys.readouterr().out and len(made) == 1
    assert main([*command, "--resume", "--end", "5"]) == 2
    assert "other options (end)" in capsys.readouterr().err
    assert main([*command, "--resume", "--overwrite"]) == 2


@pytest.fixture
def interrupted(command, tmp_path, monkeypatch, capsys):
    """A run that Ctrl-C stopped at frame 7, with a resume point after every frame."""
    monkeypatch.setattr(engine.commands.loop, "RESUME_SECONDS", 0.0)
    step = FakeSegmenter.step

    def stop(self, frame):
        if self.frames == 7:
            raise KeyboardInterrupt
        return step(self, frame)

    monkeypatch.setattr(FakeSegmenter, "step", stop)
    assert main(command) == 130
    monkeypatch.setattr(FakeSegmenter, "step", step)
    assert "--resume" in capsys.readouterr().err
    return command


def test_interrupted_run_resumes_with_the_same_masks(interrupted, made, tmp_path):
    out = tmp_path / "out"
    assert summary(out)["status"] == "interrupted" and len(masks(out)) == 7
    assert len(list(open_source(str(out / "overlay.mp4")).frames())) == 7
    assert main([*interrupted, "--resume"]) == 0
    assert made[-1].frames == 5  # those that were missing
    assert summary(out)["status"] == "complete" and summary(out)["frames"] == 12
    assert main([*interrupted, "--out", str(tmp_path / "whole")]) == 0
    assert masks(out) == masks(tmp_path / "whole")
    assert (out / "overlay.mp4").read_bytes() == (tmp_path / "whole/overlay.mp4").read_bytes()


@pytest.mark.parametrize(
    ("change", "word"),
    [(["--every", "2"], "every"), (["--size", "240"], "size"), (["--start", "1"], "start")],
)
def test_resume_with_other_options_is_refused(interrupted, tmp_path, capsys, change, word):
    before = masks(tmp_path / "out")
    assert main([*interrupted, "--resume", *change]) == 2
    error = capsys.readouterr().err
    assert "cannot resume" in error and word in error
    assert masks(tmp_path / "out") == before


def test_resume_of_another_video_or_mask_is_refused(interrupted, tmp_path, capsys):
    make_mask(tmp_path / "m.png", value=9)
    make_video(tmp_path / "v.mp4", frames=13)
    assert main([*interrupted, "--resume"]) == 2
    assert "input, mask differ" in capsys.readouterr().err


def test_damaged_resume_point(interrupted, tmp_path, capsys):
    point = tmp_path / "out" / ".resume.npz"
    point.write_bytes(point.read_bytes()[:100])
    assert main([*interrupted, "--resume"]) == 2
    assert "--overwrite" in capsys.readouterr().err


class Camera:
    """A live source of endless frames."""

    name, size, fps, frame_count, live = "camera 0", SIZE, 30.0, None, True
    missing = damaged = 0

    def fingerprint(self):
        return None

    def frames(self, start=0, end=None, every=1):
        index = start
        while end is None or index < end:
            yield Frame(index, index / 30, picture(index))
            index += every

    def close(self):
        pass


def test_camera_until_ctrl_c(command, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.commands.segment, "open_source", lambda name: Camera())
    step = FakeSegmenter.step

    def stop(self, frame):
        if self.frames == 5:
            raise KeyboardInterrupt
        return step(self, frame)

    monkeypatch.setattr(FakeSegmenter, "step", stop)
    assert main(command) == 0
    told = summary(tmp_path / "out")
    assert told["status"] == "complete" and told["frames"] == 5 and "frames_dropped" in told
    assert main([*command, "--resume", "--out", str(tmp_path / "live")]) == 2


# Box


def test_box_starts_from_a_rectangle(tmp_path, made, capsys):
    pytest.importorskip("cv2")
    video = make_video(tmp_path / "v.mp4", 3)
    out = tmp_path / "out"
    assert main(["segment", str(video), "--box", "4,2,24,23", "--out", str(out)]) == 0
    assert "rough" in capsys.readouterr().err
    truth = np.zeros(SIZE, bool)
    truth[5:21, 8:24] = True
    found = np.array(Image.open(out / "masks" / "00000.png")) > 0
    assert (found & truth).sum() / (found | truth).sum() > 0.8  # "rough"


@pytest.mark.parametrize("box", ["0,0,0,9", "64,0,5,5", "0,0,64,48"])
def test_bad_boxes(tmp_path, made, capsys, box):
    pytest.importorskip("cv2")
    video = make_video(tmp_path / "v.mp4", 3)
    assert main(["segment", str(video), "--box", box, "--out", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --box")


def test_box_reaching_out_of_the_frame_is_cut():
    pytest.importorskip("cv2")
    assert mask_from_box(picture(0), (-10, -10, 40, 38)).any()


def test_box_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[prompt\]'"):
        mask_from_box(picture(0), (1, 1, 5, 5))


@pytest.mark.parametrize(
    "bad",
    [["--box", "1,2,3"], ["--mask", "m.png", "--start", "x"], ["--mask", "m.png", "--every", "0"],
     [], ["--mask", "m.png", "--box", "1,1,2,2"], ["--mask", "m.png", "--threads", "0"]],
)  # fmt: skip
def test_options_are_checked(bad, capsys):
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args(["segment", "v.mp4", *bad])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


# Demo


def test_demo(made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # its own folder may be replaced
        assert main(["demo", "--end", "3", "--no-overlay"]) == 0
    out = tmp_path / "mobilevos-demo"
    assert list(masks(out)) == ["00000.png", "00001.png", "00002.png"]
    assert "Blender Foundation" in capsys.readouterr().out
    assert "CC BY 3.0" in summary(out)["credit"]


def test_demo_mask():
    ids = read_mask(engine.data.demo.MASK, (720, 1280)).ids
    assert set(np.unique(ids)) == {0, 1} and 0.1 < ids.mean() < 0.2
