"""Damaged videos of all usual codecs and containers: numbers stay true, and losses are told."""

from __future__ import annotations

import shutil

import av
import pytest
from helpers import damage

from engine.errors import DamagedVideoError, InputError, TruncatedVideoError
from engine.media.open import open_source

FRAMES = 120
HOW = {
    "zeros": lambda path: damage.hole(path, zeros=True),
    "noise": lambda path: damage.hole(path, zeros=False),
    "early": lambda path: damage.hole(path, zeros=True, at=0.05),
    "cut": lambda path: damage.cut(path, 0.6),
    "cut at the end": lambda path: damage.cut(path, 0.97),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The undamaged videos, made once."""
    folder = tmp_path_factory.mktemp("whole")
    return {kind: damage.make(folder / kind, kind, FRAMES) for kind in damage.KINDS}


def read(path):
    """(frames read, the error at the end or None, frames missing, frames damaged)."""
    source, frames, error = open_source(path), [], None
    try:
        frames.extend(source.frames())
    except InputError as caught:
        error = caught
    source.close()
    return frames, error, source.missing, source.damaged


@pytest.mark.parametrize("kind", damage.KINDS)
def test_a_sound_video_has_all_its_frames(whole, kind):
    frames, error, missing, damaged = read(whole[kind])
    assert error is None and missing == damaged == 0
    assert [frame.index for frame in frames] == list(range(FRAMES))
    assert [damage.number(frame.image) for frame in frames] == list(range(FRAMES))


SOUND = {
    "gif": ("gif", "gif", "rgb8", {}),
    "motion jpeg": ("mjpeg", "avi", "yuvj420p", {}),
    "program stream": ("mpeg2video", "mpeg", "yuv420p", {"bf": "2"}),
    "interlaced mpeg-2": ("mpeg2video", "mpegts", "yuv420p", {"flags": "+ilme+ildct"}),
    "interlaced h.264": ("libx264", "mpegts", "yuv420p", {"x264-params": "tff=1:bframes=3"}),
    "b-pyramid": ("libx264", "mp4", "yuv420p", {"x264-params": "bframes=8:b-pyramid=2"}),
    "b-frames in flv": ("libx264", "flv", "yuv420p", {"bf": "3"}),
    "b-frames in avi": ("libx264", "avi", "yuv420p", {"bf": "3"}),
    "wmv": ("wmv2", "asf", "yuv420p", {}),
    "ivf": ("libvpx", "ivf", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "raw h.264": ("libx264", "h264", "yuv420p", {}),
    "open groups": ("libx265", "mp4", "yuv420p", {"x265-params": "log-level=none:keyint=12"}),
    "nut": ("ffv1", "nut", "yuv420p", {}),
    "uncompressed": ("rawvideo", "avi", "bgr24", {}),
}


@pytest.mark.parametrize("kind", SOUND)
def test_no_false_alarm(tmp_path, kind):
    codec, form, pixels, options = SOUND[kind]
    path = damage.encode(tmp_path / "v", codec, form, pixels, options, 40)
    frames, error, missing, damaged = read(path)
    assert error is None and missing == damaged == 0
    assert [frame.index for frame in frames] == list(range(40))


TIMES = {
    "uneven": (10, 33, 40, 41, 90, 400),
    "repeated frames left out": (40, 40, 40, 80, 280),
    "a pause": (*(40,) * 20, 5040),
}


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("form", ["matroska", "mp4", "mpegts", "flv"])
def test_no_false_alarm_at_a_variable_rate(tmp_path, form, times):
    """Gaps in time are no missing frames where nothing else is wrong."""
    stamps = [0]
    for index in range(39):
        stamps.append(stamps[-1] + TIMES[times][index % len(TIMES[times])])
    frames, error, *_ = read(
        damage.encode(tmp_path / "v", "libx264", form, frames=40, times=stamps)
    )
    assert error is None and [frame.index for frame in frames] == list(range(40))


def test_no_false_alarm_where_two_recordings_follow_each_other(whole, tmp_path):
    path = tmp_path / "both.ts"
    path.write_bytes(whole["h264.ts"].read_bytes() * 2)
    frames, error, *_ = read(path)
    assert error is None and [frame.index for frame in frames] == list(range(2 * FRAMES))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", damage.KINDS)
def test_numbers_are_true_and_losses_are_told(whole, tmp_path, kind, how):
    path = shutil.copy(whole[kind], tmp_path / kind)
    HOW[how](path)
    try:
        frames, error, missing, _ = read(path)
    except InputError:
        return  # it cannot be opened at all, as an MP4 without its index
    assert len(frames) == FRAMES or isinstance(error, DamagedVideoError)
    broken_off = isinstance(error, TruncatedVideoError)
    if not broken_off and "cut" not in how:
        assert len(frames) + missing == FRAMES
    first = frames[0].index  # a source's times count from its first frame
    assert [f.index for f in frames] == [first + round(f.time * damage.RATE) for f in frames]
    assert [f.index for f in frames] == sorted({f.index for f in frames})


def test_a_lost_beginning(whole, tmp_path):
    """Frames in front of the first one that can be decoded count, too."""
    path = shutil.copy(whole["hevc.mp4"], tmp_path / "hevc.mp4")
    with av.open(str(path)) as container:
        first = next(packet for packet in container.demux(video=0) if packet.size)
    damage.hole(path, zeros=True, at=first.pos / path.stat().st_size, size=first.size)
    frames, error, missing, _ = read(path)
    assert isinstance(error, DamagedVideoError) and missing == FRAMES - len(frames) > 0
    assert [damage.number(frame.image) for frame in frames] == [frame.index for frame in frames]


@pytest.mark.parametrize("kind", damage.KINDS)
def test_a_lost_packet(tmp_path, kind):
    """What the container holds is numbered as it holds it; what the decoder then drops is told."""
    path = damage.make(tmp_path / kind, kind, FRAMES, drop=60)
    frames, error, missing, _ = read(path)
    if error is None:
        assert [frame.index for frame in frames] == list(range(FRAMES - 1))
    else:
        assert isinstance(error, DamagedVideoError) and len(frames) + missing == FRAMES
        assert [f.index for f in frames] == [round(f.time * damage.RATE) for f in frames]
