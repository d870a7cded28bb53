"""Tiny videos and images for the tests, and a segmenter that needs no weights."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

SIZE = (48, 64)  # (H, W)


def picture(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A frame that differs from every other: uint8 RGB [H,W,3], a bright square on grey noise.

    Grey, because video halves the resolution of colour.
    """
    noise = np.random.default_rng(index).integers(0, 120, (*size, 1), dtype=np.uint8)
    image = np.repeat(noise, 3, axis=2)
    top, left = 5 + index % 20, 8 + index % 30
    image[top : top + 16, left : left + 16] = (250, 200, 30)
    return image


def make_video(
    path: Path,
    frames: int = 12,
    size: tuple[int, int] = SIZE,
    rate: int = 25,
    times: Iterable[float] | None = None,
    options: dict[str, str] | None = None,
    codec: str = "libx264",
) -> Path:
    """Write a video of `picture`s; ``times`` (seconds) gives each frame its own."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate = 4_000_000
        stream.options = {"crf": "10", "bf": "0"} if codec == "libx264" else {}
        stamps = None if times is None else [round(t * 1000) for t in times]
        if stamps is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        container.start_encoding()
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, size), format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def make_mask(path: Path, size: tuple[int, int] = SIZE, value: int = 1) -> Path:
    """A grey mask of the square in `picture` (0)."""
    ids = np.zeros(size, np.uint8)
    ids[5:21, 8:24] = value
    Image.fromarray(ids).save(path)
    return path


class FakeSegmenter:
    """Follows nothing, but depends on all it has seen, so that a lost frame or state shows."""

    model, model_hash, backend = "fake", "0" * 64, "cpu"
    frames, fps, p50_ms, p99_ms = 0, 10.0, 100.0, 120.0

    def __init__(self) -> None:
        self.sum = 0
        self.lost_frames = {7: 2}
        self.confidence, self.lost = {1: 0.75, 7: 0.25}, (7,)
        self.ids_now = np.zeros(SIZE, np.uint8)
        self.hints = 0  # frames that came as they were announced
        self.coming: np.ndarray | None = None
        self.after: np.ndarray | None = None

    @property
    def stats(self) -> FakeSegmenter:
        return self

    def start(self, frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
        assert frame.dtype == np.uint8 and frame.flags.c_contiguous
        self.sum, self.ids_now, self.frames = int(frame.sum()), mask.copy(), 1
        self.came(frame)
        return mask

    def expect(self, frame: np.ndarray) -> None:
        self.after = frame

    def came(self, frame: np.ndarray) -> None:
        # A live source may drop the frame that was announced.
        self.hints += frame is self.coming
        self.coming, self.after = self.after, None

    def step(self, frame: np.ndarray) -> np.ndarray:
        self.came(frame)
        self.sum = (self.sum * 31 + int(frame.sum())) % 1_000_003
        self.ids_now = np.roll(self.ids_now, (self.sum % 3, self.sum % 5), (0, 1))
        self.frames += 1
        return self.ids_now

    def state_dict(self) -> dict[str, np.ndarray]:
        return {"sum": np.array(self.sum), "ids": self.ids_now}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        self.sum, self.ids_now = int(state["sum"]), state["ids"].copy()

    def __enter__(self) -> FakeSegmenter:
        return self

    def __exit__(self, *exc: object) -> None:
        pass
