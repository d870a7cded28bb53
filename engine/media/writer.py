"""Write overlay videos: H.264 in MP4 that plays everywhere, with each frame's own time."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import OutputError
from engine.files import create, output_errors, part_of
from engine.media.picture import Image8

# MPEG-4 allows no finer clock than 1/65535; 60000 has whole ticks for 24, 25, 30 and 29.97 fps.
_TICKS = 60000
_SMALLEST = 16  # players and hardware decoders refuse less


class VideoWriter:
    """Writes uint8 RGB frames [H,W,3] of one size to ``path``.

    size: (H, W). The video has a temporary name in the same folder until ``close``; ``discard``
    drops it, so that ``path`` is never half-written. A ``with`` block closes it, or discards it
    after an exception. Odd sizes are padded to even by repeating the edge. Raises OutputError.
    """

    def __init__(self, path: Path | str, size: tuple[int, int], fps: float) -> None:
        self._path = path = Path(path)
        self._part = part_of(path)
        self._last = -1
        self._pad = tuple(max(_SMALLEST, n + n % 2) - n for n in size)
        self._step = max(1, round(_TICKS / fps))
        try:
            with self._errors():
                self._open(size, fps)
        except OutputError:
            self.discard()
            raise

    def _open(self, size: tuple[int, int], fps: float) -> None:
        import av

        # Any: PyAV's types allow for every kind of stream.
        self._file = create(self._part)
        # An open file, since FFmpeg would look for a protocol in the name.
        container: Any = av.open(self._file, "w", format="mp4")
        self._container: Any = container
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        rate = Fraction(fps).limit_denominator(1001)
        self._stream: Any = container.add_stream(codec, rate=rate)
        self._stream.height, self._stream.width = size[0] + self._pad[0], size[1] + self._pad[1]
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.time_base = self._stream.time_base = Fraction(1, _TICKS)
        # BT.709, limited range, said in the stream: unsaid, players guess from the size.
        context.colorspace, context.color_range = 1, 1
        context.color_primaries, context.color_trc = 1, 1
        if codec == "libx264":
            # No B-frames: with uneven times they make the muxer state too short a duration.
            # "superfast" at 20: 0.4 dB better and 0.7 of the bytes, but 1.5 times the time, which
            # the network lacks on a CPU and which bounds the FPS beside a GPU.
            self._stream.options = {"preset": "ultrafast", "crf": "22", "bf": "0"}
        else:
            self._stream.bit_rate = max(500_000, int(0.15 * size[0] * size[1] * fps))
        self._container.start_encoding()

    @contextlib.contextmanager
    def _errors(self) -> Any:
        import av

        try:
            with output_errors(self._path):
                yield
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(
                f"cannot encode '{self._path}': {error}; run again with --no-overlay"
            ) from error

    def write(self, image: Image8, time: float) -> None:
        """Append a frame to be shown at ``time`` seconds; times must rise."""
        import av

        bottom, right = self._pad
        if bottom or right:
            image = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="edge")
        rgb = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), format="rgb24")
        # One thread: FFmpeg would start and stop some for each frame.
        frame = rgb.reformat(format="yuv420p", dst_colorspace="ITU709", threads=1)
        ticks = max(round(time * _TICKS), self._last + 1)
        if self._last >= 0:
            self._step = ticks - self._last
        self._last = frame.pts = ticks
        frame.time_base = Fraction(1, _TICKS)
        if hasattr(frame, "duration"):
            frame.duration = self._step
        with self._errors():
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file and give it its name; an empty one is dropped."""
        if self._last < 0:
            self.discard()
            return
        try:
            with self._errors():
                self._container.mux(self._stream.encode(None))
                self._container.close()
                os.fsync(self._file.fileno())
                self._file.close()
                self._part.replace(self._path)
        except OutputError:
            self.discard()
            raise

    def discard(self) -> None:
        """Drop what was written so far."""
        with contextlib.suppress(Exception):
            self._container.close()
        with contextlib.suppress(Exception):
            self._file.close()
        with contextlib.suppress(OSError):
            self._part.unlink()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()
