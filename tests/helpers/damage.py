"""Videos whose frames tell their own number, and ways to damage a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = (64, 96)  # (H, W)
RATE = 25
BITS = 10
#: name → (encoder, its options, container): what people film, record and download.
KINDS: dict[str, tuple[str, dict[str, str], str]] = {
    "h264.mp4": ("libx264", {"crf": "12", "g": "50"}, "mp4"),
    "h264.mkv": ("libx264", {"crf": "12", "g": "50"}, "matroska"),
    "h264.ts": ("libx264", {"crf": "12", "g": "50"}, "mpegts"),
    "hevc.mp4": ("libx265", {"crf": "14", "x265-params": "log-level=none:keyint=50"}, "mp4"),
    "hevc.mkv": ("libx265", {"crf": "14", "x265-params": "log-level=none:keyint=50"}, "matroska"),
    "mpeg4.mp4": ("mpeg4", {"qscale": "3"}, "mp4"),
    "mpeg4.avi": ("mpeg4", {"qscale": "3"}, "avi"),
    "ffv1.mkv": ("ffv1", {}, "matroska"),
    "av1.mp4": ("libsvtav1", {"preset": "12", "svtav1-params": "keyint=50"}, "mp4"),
    "av1.mkv": ("libsvtav1", {"preset": "12", "svtav1-params": "keyint=50"}, "matroska"),
    "vp9.webm": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime", "g": "50"}, "webm"),
    "vp8.webm": (
        "libvpx",
        {"cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "9"},
        "webm",
    ),
    "prores.mov": ("prores", {}, "mov"),
}


def numbered(index: int) -> np.ndarray:
    """A frame uint8 [H,W,3] that shows ``index`` as a row of black and white blocks."""
    noise = np.random.default_rng(index).integers(90, 160, (*SIZE, 1), dtype=np.uint8)
    image = np.repeat(noise, 3, axis=2)
    for bit in range(BITS):
        image[8:40, 8 + 8 * bit : 16 + 8 * bit] = 255 * (index >> bit & 1)
    return image


def number(image: np.ndarray) -> int:
    """The number that a frame of `numbered` shows."""
    return sum(
        (1 << bit) * bool(image[16:32, 10 + 8 * bit : 14 + 8 * bit].mean() > 128)
        for bit in range(BITS)
    )


def make(path: Path, kind: str, frames: int = 120, drop: int | None = None) -> Path:
    """Write a video of `numbered` frames, without the encoder's packet ``drop``, as if lost."""
    codec, options, form = KINDS[kind]
    pixels = "yuv422p10le" if codec == "prores" else "yuv420p"
    return encode(path, codec, form, pixels, options, frames, drop)


def encode(
    path: Path,
    codec: str,
    form: str,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    frames: int = 120,
    drop: int | None = None,
    times: Sequence[int] | None = None,
) -> Path:
    """Write a video of `numbered` frames; ``times``, in ms, gives each its own."""
    with av.open(str(path), "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=RATE, options=options or {})
        stream.height, stream.width = SIZE
        stream.pix_fmt = pixels
        stream.bit_rate = 2_000_000
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        packets = 0
        for index in range(frames + 1):
            frame = None
            if index < frames:
                frame = av.VideoFrame.from_ndarray(numbered(index), format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            for packet in stream.encode(frame):
                if packets != drop:
                    container.mux(packet)
                packets += 1
    if hasattr(os, "sched_setscheduler"):
        # As root, SVT-AV1 leaves this thread with real-time priority, which starves all others.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def hole(path: Path, zeros: bool, at: float = 0.5, size: int = 3000) -> None:
    """Overwrite ``size`` bytes of a file with zeros or noise."""
    content = bytearray(path.read_bytes())
    start = int(len(content) * at)
    content[start : start + size] = bytes(size) if zeros else np.random.default_rng(0).bytes(size)
    path.write_bytes(content)


def cut(path: Path, share: float) -> None:
    """Keep the first ``share`` of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
