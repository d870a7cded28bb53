"""Frame sources and sinks: the right frames, in order, at their times."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import ROOT
from helpers.media import SIZE, make_video, picture
from PIL import Image

from engine.errors import InputError, OutputError, TruncatedVideoError
from engine.media.images import natural_key
from engine.media.open import open_source
from engine.media.writer import VideoWriter
from engine.threads import Worker, prefetch


def close(image, index):
    """Whether ``image`` is `picture(index)` but for what the codec lost."""
    return np.abs(image.astype(int) - picture(index)).mean() < 12


def test_frames_of_a_video(tmp_path):
    source = open_source(str(make_video(tmp_path / "v.mp4")))
    frames = list(source.frames())
    assert (source.size, source.fps, source.frame_count, source.live) == (SIZE, 25.0, 12, False)
    assert [f.index for f in frames] == list(range(12))
    assert [f.time for f in frames] == pytest.approx([i / 25 for i in range(12)])
    for frame in frames:
        assert frame.image.dtype == np.uint8 and frame.image.flags.c_contiguous
        assert close(frame.image, frame.index) and not close(frame.image, frame.index + 1)
    assert [f.index for f in source.frames()] == list(range(12))  # a second pass


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ((3,), range(3, 12)),
        ((0, 5), range(5)),
        ((2, 11, 4), range(2, 11, 4)),
        ((0, 99, 5), range(0, 12, 5)),
        ((11,), [11]),
    ],
)
@pytest.mark.parametrize("kind", ["video", "folder"])
def test_start_end_every(tmp_path, kind, chosen, expected):
    path = tmp_path / "v.mp4"
    if kind == "video":
        make_video(path)
    else:
        path.mkdir()
        for index in range(12):
            Image.fromarray(picture(index)).save(path / f"{index}.png")
    frames = list(open_source(str(path)).frames(*chosen))
    assert [f.index for f in frames] == list(expected)
    assert all(close(f.image, f.index) for f in frames)


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi", "v.ts", "v.flv", "v.h264", "v.mov"])
def test_no_false_alarm(tmp_path, name):
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    source = open_source(str(make_video(tmp_path / name, frames=30, codec=codec)))
    assert len(list(source.frames())) == 30


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
@pytest.mark.parametrize("seconds", [0.2, 3.0])
def test_no_false_alarm_with_sound_of_another_length(tmp_path, name, seconds):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for start in range(0, int(8000 * seconds), 1600):
            chunk = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), "fltp", "mono")
            chunk.sample_rate, chunk.pts = 8000, start
            container.mux(sound.encode(chunk))
        container.mux(sound.encode(None))
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert len(list(open_source(str(path)).frames())) == 30


def test_truncation_comes_after_the_good_frames(tmp_path):
    video = make_video(tmp_path / "v.mp4", frames=40, options={"movflags": "faststart"})
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    seen = []
    with pytest.raises(TruncatedVideoError, match="of about 40"):
        seen.extend(open_source(str(video)).frames())
    assert len(seen) > 5 and all(close(f.image, f.index) for f in seen)
    # What is asked for lies before the break: nothing is wrong.
    assert len(list(open_source(str(video)).frames(0, 5))) == 5


def test_variable_frame_rate(tmp_path):
    times = [0, 0.04, 0.3, 0.34, 1.0]
    frames = open_source(str(make_video(tmp_path / "v.mp4", 5, times=times))).frames()
    assert [f.time for f in frames] == pytest.approx(times, abs=1e-3)


_MATRICES = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_phone_video(tmp_path, degrees):
    video = make_video(tmp_path / "v.mp4", 3)
    plain = [f.image for f in open_source(str(video)).frames()]
    content = bytearray(video.read_bytes())
    matrix = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in _MATRICES[degrees])
    values = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4")
    content[matrix : matrix + 36] = values.tobytes()
    video.write_bytes(content)
    source = open_source(str(video))
    turned = [f.image for f in source.frames()]
    assert source.size == turned[0].shape[:2] == (SIZE if degrees == 180 else SIZE[::-1])
    for before, after in zip(plain, turned, strict=True):
        np.testing.assert_array_equal(after, np.rot90(before, -degrees // 90))  # clockwise


def test_names_sort_naturally():
    names = ["f10.png", "f9.png", "F1.png", "f09.png", "a.png", "10.png", "9.png"]
    ordered = sorted(map(Path, names), key=natural_key)
    assert [p.name for p in ordered] == [
        "9.png", "10.png", "a.png", "F1.png", "f09.png", "f9.png", "f10.png",
    ]  # fmt: skip


def test_folder_ignores_other_files(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "0.JPG", quality=95)
    (tmp_path / "._0.jpg").write_bytes(b"macOS leaves these")
    (tmp_path / "notes.txt").write_text("x")
    assert open_source(str(tmp_path)).frame_count == 1


def test_transparent_pixels_are_black(tmp_path):
    pixels = np.dstack([picture(0), np.zeros(SIZE, np.uint8)])
    pixels[:10, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "0.png")
    frame = next(open_source(str(tmp_path)).frames()).image
    np.testing.assert_array_equal(frame[:10], picture(0)[:10])
    assert not frame[10:].any()


@pytest.mark.parametrize("name", ["77", "rtsp://127.0.0.1:9/none", "http://127.0.0.1:9/v.mp4"])
def test_camera_or_stream_that_is_not_there(name):
    with pytest.raises(InputError, match=r"connected|cameras have names"):
        open_source(name)


# Writer


@pytest.mark.parametrize("size", [(1, 1), (15, 17), (33, 64), (3, 500)])
def test_writer_pads_to_even_by_the_edge(tmp_path, size):
    path = tmp_path / "o.mp4"
    writer = VideoWriter(path, size, 25)
    image = np.full((*size, 3), (200, 40, 60), np.uint8)
    for index in range(3):
        writer.write(image, index / 25)
        assert not path.exists()
    writer.close()
    source = open_source(str(path))
    assert source.size == tuple(max(16, n + n % 2) for n in size)
    for frame in source.frames():
        assert np.abs(frame.image.astype(int) - (200, 40, 60)).max() <= 6
    assert [p.name for p in tmp_path.iterdir()] == ["o.mp4"]


@pytest.mark.parametrize("fps", [12.0, 30000 / 1001, 60.0])
def test_writer_keeps_the_rate(tmp_path, fps):
    writer = VideoWriter(tmp_path / "o.mp4", SIZE, fps)
    for index in range(20):
        writer.write(picture(index), index / fps)
    writer.close()
    source = open_source(str(tmp_path / "o.mp4"))
    assert source.fps == pytest.approx(fps, rel=1e-3)
    assert len(list(source.frames())) == 20


def test_writer_without_h264(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    writer = VideoWriter(tmp_path / "o.mp4", SIZE, 29.97)
    for index in range(5):
        writer.write(picture(index), index / 29.97)
    writer.close()
    assert len(list(open_source(str(tmp_path / "o.mp4")).frames())) == 5


def test_writer_leaves_nothing_behind(tmp_path):
    VideoWriter(tmp_path / "a.mp4", SIZE, 25).close()  # no frame came
    writer = VideoWriter(tmp_path / "b.mp4", SIZE, 25)
    writer.write(picture(0), 0)
    writer.discard()
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match="cannot write"):
        VideoWriter(tmp_path / "no" / "c.mp4", SIZE, 25)


# Threads


def test_prefetch_keeps_order_and_error():
    def items():
        yield from range(20)
        raise InputError("broken")

    with prefetch(items(), 3) as ahead:
        assert [next(ahead) for _ in range(20)] == list(range(20))
        with pytest.raises(InputError, match="broken"):
            next(ahead)
        with pytest.raises(StopIteration):
            next(ahead)


def test_prefetch_is_bounded_and_closes():
    made, closed = [], threading.Event()

    def items():
        try:
            for value in range(1000):
                made.append(value)
                yield value
        finally:
            closed.set()

    ahead = prefetch(items(), 4)
    assert next(ahead) == 0
    ahead.close()
    ahead.close()
    assert closed.is_set() and len(made) <= 1 + 4 + 1


def test_prefetch_of_a_live_source_drops_the_oldest():
    finished = threading.Event()

    def items():
        yield from range(100)
        finished.set()

    with prefetch(items(), 2, drop_oldest=True) as ahead:
        assert finished.wait(10)
        assert list(ahead) == [98, 99] and ahead.dropped == 98


def test_worker_runs_in_order_and_raises():
    done: list[int] = []
    worker = Worker(depth=2)
    for value in range(50):
        worker.submit(done.append, value)
    worker.close()
    assert done == list(range(50))

    def fail():
        raise OutputError("full")

    worker = Worker(depth=2)
    worker.submit(fail)
    with pytest.raises(OutputError, match="full"):
        for _ in range(5):
            worker.submit(done.append, -1)
        worker.close()
    assert -1 not in done


def test_nothing_heavy_is_imported_for_the_command_line():
    code = "import sys, engine.cli; print([m for m in ('av', 'PIL', 'torch', 'onnxruntime', "
    code += "'numpy', 'cv2', 'tqdm') if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=ROOT,
    )  # fmt: skip
    assert run.stdout.strip() == "[]"
