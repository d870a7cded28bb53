"""Section by section what users get wrong: one clear line, the right exit code, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import ROOT
from helpers.media import SIZE, FakeSegmenter, make_mask, make_video, picture
from PIL import Image

import engine.files
import engine.media.writer
from engine.cli import main
from engine.media.open import open_source
from engine.segmenter import Segmenter


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(Segmenter, "load", lambda options: FakeSegmenter())


@pytest.fixture
def segment(tmp_path, capsys):
    """Run ``segment``; returns (exit code, stdout, stderr). The folder is ``tmp_path/out``."""

    def run(source, *more, mask=None):
        if mask is None:
            mask = make_mask(tmp_path / "good-mask.png")
        given = [] if mask is False else ["--mask", str(mask)]
        code = main(["segment", str(source), *given, "--out", str(tmp_path / "out"), *more])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def refused(result, *words, code=2):
    """The outcome is one line on stderr, without a traceback, that contains ``words``."""
    assert result[0] == code
    kind = "warning: " if code == 3 else "error: "
    errors = [line for line in result[2].splitlines() if line.startswith(kind)]
    assert len(errors) == 1 and "Traceback" not in result[2]
    for word in words:
        assert word in errors[0]


def masks(folder):
    return {p.name: p.read_bytes() for p in sorted((folder / "masks").glob("*.png"))}


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


# Files


def test_missing_file(segment, tmp_path):
    refused(segment(tmp_path / "none.mp4"), "none.mp4", "does not exist", "check the path")
    assert not (tmp_path / "out").exists()


def test_unreadable_file(segment, tmp_path, monkeypatch):
    video = make_video(tmp_path / "v.mp4")
    original = Path.open

    def denied(self, *args, **kwargs):
        if self == video:
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)
    refused(segment(video), "cannot be read", "permission denied")


@pytest.mark.parametrize("content", [b"hello, this is text\n" * 50, bytes(range(256)) * 40])
def test_not_a_video(segment, tmp_path, content):
    path = tmp_path / "notes.mp4"
    path.write_bytes(content)
    refused(segment(path), "notes.mp4", "not a video")


def test_sound_only(segment, tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    refused(segment(path), "not a video")


def test_folder_without_images(segment, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(segment(tmp_path / "empty"), "has no images")


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi"])
def test_truncated_video_keeps_the_masks(segment, tmp_path, name):
    codec = "mpeg4" if name == "v.avi" else "libx264"
    options = {"movflags": "faststart"} if name == "v.mp4" else {}
    video = make_video(tmp_path / name, frames=60, options=options, codec=codec)
    whole = len(list(open_source(str(video)).frames()))
    assert whole == 60
    video.write_bytes(video.read_bytes()[: int(video.stat().st_size * 0.55)])
    result = segment(video)
    refused(result, "breaks off after", "of about 60", "kept", code=3)
    out = tmp_path / "out"
    assert summary(out)["status"] == "truncated"
    count = summary(out)["frames"]
    assert 10 < count < 45 and len(masks(out)) == count
    assert len(list(open_source(str(out / "overlay.mp4")).frames())) == count


def test_damage_in_the_middle(segment, tmp_path):
    video = make_video(tmp_path / "v.mp4", frames=60)
    content = bytearray(video.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    video.write_bytes(content)
    refused(segment(video), "is damaged", "missing", code=3)
    assert len(masks(tmp_path / "out")) == summary(tmp_path / "out")["frames"] > 10


def test_unfinished_mp4(segment, tmp_path):
    """An MP4 whose index, at its end, is missing holds nothing to decode."""
    video = make_video(tmp_path / "v.mp4")
    content = video.read_bytes()
    for cut in (content.index(b"moov") - 4, len(content) - 600):
        video.write_bytes(content[:cut])
        refused(segment(video), "v.mp4", "only in part")


def test_zero_frames(segment, tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    refused(segment(empty), "empty.mp4", "0 bytes")
    refused(segment(make_video(tmp_path / "v.mkv", frames=0)), "v.mkv", "not a video")
    refused(segment(make_video(tmp_path / "v.avi", frames=0)), "v.avi", "no frame")


def test_start_behind_the_end(segment, tmp_path):
    video = make_video(tmp_path / "v.mp4")
    refused(segment(video, "--start", "12"), "--start 12", "only 12 frames")
    refused(segment(video, "--start", "5", "--end", "5"), "--end 5")
    assert not (tmp_path / "out").exists()


def test_size_change_in_mid_stream(segment, tmp_path):
    parts = [make_video(tmp_path / f"{i}.h264", 5, size) for i, size in enumerate([SIZE, (64, 80)])]
    video = tmp_path / "both.h264"
    video.write_bytes(b"".join(part.read_bytes() for part in parts))
    refused(segment(video), "80x64", "64x48", "frame 5")
    assert len(masks(tmp_path / "out")) == 5
    assert summary(tmp_path / "out")["status"] == "failed"


def test_folder_of_mixed_sizes(segment, tmp_path):
    for index, size in enumerate([SIZE, SIZE, (50, 64)]):
        Image.fromarray(picture(index, size)).save(tmp_path / f"{index}.png")
    refused(segment(tmp_path), "2.png", "64x50", "64x48")


def test_damaged_image_in_a_folder(segment, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(4):
        Image.fromarray(picture(index)).save(folder / f"{index}.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:3000])
    refused(segment(folder), "2.png", "damaged", code=3)
    assert len(masks(tmp_path / "out")) == 2


# Masks: the kinds of mask files themselves are in test_masks.py


@pytest.fixture
def video(tmp_path):
    return make_video(tmp_path / "v.mp4", frames=3)


def test_mask_missing(segment, tmp_path, video):
    refused(segment(video, mask=tmp_path / "no.png"), "no.png", "does not exist")


def test_mask_that_is_no_image(segment, tmp_path, video):
    (tmp_path / "m.png").write_text("no image")
    refused(segment(video, mask=tmp_path / "m.png"), "m.png", "not a readable image")


def test_mask_of_another_size(segment, tmp_path, video):
    mask = make_mask(tmp_path / "m.png", (96, 128))
    refused(segment(video, mask=mask), "128x96", "64x48", "--resize-mask")
    code, _, err = segment(video, "--resize-mask", mask=mask)
    assert code == 0 and "scaled" in err


def test_rgb_mask_is_mapped_and_told(segment, tmp_path, video):
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[5:20, 5:20], pixels[30:40, 30:50] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "m.png")
    code, _, err = segment(video, mask=tmp_path / "m.png")
    assert code == 0 and "#ff0000 = 1" in err and "#0000ff = 2" in err
    first = np.array(Image.open(tmp_path / "out" / "masks" / "00000.png"))
    assert first[10, 10] == 1 and first[35, 40] == 2 and first[0, 0] == 0


def test_antialiased_mask(segment, tmp_path, video):
    big = Image.new("L", (SIZE[1] * 8, SIZE[0] * 8))
    big.paste(255, (101, 77, 350, 290))
    big.rotate(20).resize(SIZE[::-1], Image.Resampling.LANCZOS).save(tmp_path / "m.png")
    refused(segment(video, mask=tmp_path / "m.png"), "antialiased", "PNG", "nearest")


def test_jpeg_mask(segment, tmp_path, video):
    Image.open(make_mask(tmp_path / "g.png", value=255)).save(tmp_path / "m.jpg")
    refused(segment(video, mask=tmp_path / "m.jpg"), "JPEG", "PNG")


def test_empty_mask(segment, tmp_path, video):
    refused(segment(video, mask=make_mask(tmp_path / "m.png", value=0)), "empty", "no object")


def test_more_than_255_objects(segment, tmp_path, video):
    values = np.arange(16 * 20, dtype=np.uint16).reshape(16, 20).repeat(3, axis=0).repeat(3, axis=1)
    values = np.pad(values, ((0, 0), (0, 4)))
    Image.fromarray(values).save(tmp_path / "m.png")
    refused(segment(video, mask=tmp_path / "m.png"), "319 objects", "255")


# Sizes and kinds of images


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (5000, 3), (2160, 3840)])
def test_odd_sizes(segment, tmp_path, size):
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(2):
        Image.fromarray(picture(index, size)).save(folder / f"{index}.png", compress_level=0)
    Image.fromarray(np.ones(size, np.uint8)).save(tmp_path / "m.png")
    code, _, _ = segment(folder, mask=tmp_path / "m.png")
    assert code == 0
    assert all(Image.open(p).size == size[::-1] for p in (tmp_path / "out" / "masks").glob("*.png"))
    height, width = open_source(str(tmp_path / "out" / "overlay.mp4")).size
    assert height >= size[0] and width >= size[1] and height % 2 == width % 2 == 0


@pytest.mark.parametrize("kind", ["grey", "grey16", "rgba", "palette", "exif"])
def test_kinds_of_images(segment, tmp_path, kind):
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(3):
        rgb = Image.fromarray(picture(index))
        if kind == "grey16":
            image = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
        else:
            image = rgb.convert({"grey": "L", "rgba": "RGBA", "palette": "P"}.get(kind, "RGB"))
        exif = Image.Exif()
        if kind == "exif":
            image, exif[0x0112] = image.transpose(Image.Transpose.ROTATE_90), 6
        image.save(folder / f"{index}.png", exif=exif)
    frames = [f.image for f in open_source(str(folder)).frames()]
    expected = np.asarray(Image.fromarray(picture(2)).convert("L" if "grey" in kind else "RGB"))
    expected = expected.reshape(*SIZE, -1)
    assert np.abs(frames[2].astype(int) - expected).mean() < (20 if kind == "palette" else 1)
    assert segment(folder)[0] == 0
    assert len(masks(tmp_path / "out")) == 3


def test_variable_frame_rate(segment, tmp_path):
    times = [0, 0.04, 0.08, 0.5, 0.54, 1.0, 1.04]
    video = make_video(tmp_path / "v.mp4", frames=7, times=times)
    assert segment(video)[0] == 0
    written = [f.time for f in open_source(str(tmp_path / "out" / "overlay.mp4")).frames()]
    assert written == pytest.approx(times, abs=0.002)


# Output


@pytest.mark.parametrize("obstacle", ["file in the way", "below a file"])
def test_output_folder_impossible(segment, tmp_path, video, obstacle):
    file = tmp_path / "file"
    file.write_text("mine")
    out = file if obstacle == "file in the way" else file / "out"
    refused(segment(video, "--out", str(out)), "cannot write", str(out), "--out")
    assert file.read_text() == "mine"


def test_output_folder_not_writable(segment, tmp_path, video, monkeypatch):
    if os.geteuid() == 0:  # whom no mode bits stop
        monkeypatch.setattr(
            engine.files.tempfile, "TemporaryFile", _raise(PermissionError(errno.EACCES, "denied"))
        )
    else:
        (tmp_path / "out").mkdir(mode=0o500)
    refused(segment(video), "cannot write", "no permission", "--out")


def _raise(error):
    def call(*args, **kwargs):
        raise error

    return call


class Full:
    """A file on a disk that has room for half of what is written."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_disk_full_keeps_what_is_written(segment, tmp_path, monkeypatch):
    video = make_video(tmp_path / "v.mp4")
    create = engine.files.create

    def filling(path):
        file = create(path)
        return Full(file) if path.name in (".00007.png.part", ".summary.json.part") else file

    monkeypatch.setattr(engine.files, "create", filling)
    refused(segment(video), "disk is full", "--resume")
    out = tmp_path / "out"
    assert list(masks(out)) == [f"{i:05d}.png" for i in range(7)]
    assert not list(out.rglob("*.part"))
    monkeypatch.setattr(engine.files, "create", create)
    assert segment(video, "--resume")[0] == 0
    assert len(masks(out)) == 12


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_full_for_the_overlay(segment, tmp_path, video, monkeypatch):
    def full(path):
        path.touch()
        return Path("/dev/full").open("wb", buffering=0)

    monkeypatch.setattr(engine.media.writer, "create", full)
    refused(segment(video), "overlay.mp4", "disk is full")
    assert not (tmp_path / "out" / "overlay.mp4").exists()


# Killed in the middle

_KILLED = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
import engine.commands.loop
from helpers import media
from engine.cli import main
from engine.segmenter import Segmenter

engine.commands.loop.RESUME_SECONDS = 0.0
folder, how = Path(sys.argv[1]), sys.argv[2]
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)

def resume_point():
    with np.load(folder / "out" / ".resume.npz") as file:
        return bytes(file["header"])

class Killed(media.FakeSegmenter):
    def step(self, frame):
        if self.frames == 8:  # once a later point than the start has reached the disk
            while b'"index": -1' in resume_point():
                time.sleep(0.01)
            kill()
        return super().step(frame)

replace = Path.replace
def killed_in_replace(self, target):
    if self.name == ".00006.png.part":
        kill()
    return replace(self, target)

if how == "computing":
    Segmenter.load = lambda options: Killed()
else:
    Segmenter.load = lambda options: media.FakeSegmenter()
    Path.replace = killed_in_replace
main(["segment", str(folder / "v.mp4"), "--mask", str(folder / "m.png"),
      "--out", str(folder / "out")])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("how", ["computing", "writing"])
def test_killed_in_the_middle(segment, tmp_path, how):
    video, mask = make_video(tmp_path / "v.mp4"), make_mask(tmp_path / "m.png")
    script = _KILLED.format(tests=str(ROOT / "tests"))
    process = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), how], timeout=120, check=False,
        cwd=ROOT,
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL
    out = tmp_path / "out"
    left = masks(out)
    assert 0 < len(left) < 12 and not (out / "overlay.mp4").exists()
    for name in left:
        Image.open(out / "masks" / name).load()  # whole, every one

    code, _, err = segment(video, "--resume", mask=mask)
    assert code == 0 and (how == "writing" or "resuming after frame" in err)
    resumed = masks(out)
    assert not (out / ".resume.npz").exists() and not list(out.rglob("*.part"))
    assert segment(video, "--out", str(tmp_path / "whole"), mask=mask)[0] == 0
    assert resumed == masks(tmp_path / "whole") and len(resumed) == 12
    assert len(list(open_source(str(out / "overlay.mp4")).frames())) == 12
