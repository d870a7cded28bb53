"""The frames of whatever PyAV opens: a video file, a camera or a network stream."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from engine.errors import InputError
from engine.files import sample_digest
from engine.media.decoder import Decoder
from engine.media.picture import upright_image, upright_size
from engine.media.source import Frame, check_range, check_reached, size_change

if TYPE_CHECKING:
    from av import VideoFrame


class VideoSource:
    """A `Source` that PyAV opens; ``frames`` may be called again, except on a live one."""

    def __init__(
        self,
        file: Path | BinaryIO | str,
        format: str | None = None,
        name: str | None = None,
        live: bool = False,
    ) -> None:
        self.name, self.live = name or str(file), live
        self._file = file
        self._how = (file, format, self.name, live)
        self._decoder = Decoder(*self._how)
        self.fps, self.frame_count = self._decoder.fps, self._decoder.frame_count
        self._pictures: Generator[tuple[int, VideoFrame], None, None] = self._decoder.pictures()
        # The first picture is decoded here: only it tells the upright size, and that there is one.
        self._first = next(self._pictures, None)
        if self._first is None:
            self.close()
            raise InputError(
                f"'{self.name}' has no frame that can be decoded; check that it plays in a "
                "video player, or convert it to H.264"
            )
        self.size = upright_size(self._first[1])

    @property
    def missing(self) -> int:
        """See `Source`."""
        return self._decoder.missing

    @property
    def damaged(self) -> int:
        """See `Source`."""
        return self._decoder.damaged

    def fingerprint(self) -> str | None:
        """See `Source`."""
        if isinstance(self._file, Path):
            return sample_digest(self._file)
        return None if self.live or not isinstance(self._file, str) else self._file

    def frames(self, start: int = 0, end: int | None = None, every: int = 1) -> Iterator[Frame]:
        """See `Source.frames`. Skipped frames are decoded, so that an index is always exact."""
        check_range(start, end, every)
        clock, index = _Clock(self.fps, self._decoder.time_base), -1
        for index, picture in self._all_pictures():
            if end is not None and index >= end:
                self._decoder.check()
                return
            time = clock.time(picture)
            if index < start or (index - start) % every:
                continue
            if upright_size(picture) != self.size:
                raise size_change(
                    f"frame {index} of '{self.name}'", upright_size(picture), self.size
                )
            yield Frame(index, time, upright_image(picture))
        check_reached(start, index + 1, self.name)

    def _all_pictures(self) -> Iterator[tuple[int, VideoFrame]]:
        if self._first is None:
            if self.live or not isinstance(self._file, (Path, str)):
                raise InputError(f"{self.name} can be read only once")
            self._decoder.close()
            self._decoder = Decoder(*self._how)
            self._pictures = self._decoder.pictures()
        else:
            first, self._first = self._first, None
            yield first
        yield from self._pictures

    def close(self) -> None:
        """Close the file; one that a thread is waiting for closes when it is unused."""
        with contextlib.suppress(ValueError):  # the thread is inside this very generator
            self._pictures.close()
            self._decoder.close()


class _Clock:
    """Seconds since the first picture; they rise even if time stamps lack or jump back."""

    def __init__(self, fps: float, time_base: float) -> None:
        self._step, self._time_base = 1 / fps, time_base
        self._zero: float | None = None
        self._last = -self._step

    def time(self, picture: VideoFrame) -> float:
        stamp = None if picture.pts is None else picture.pts * self._time_base
        if self._zero is None:
            self._zero = stamp or 0.0
        now = self._last + self._step if stamp is None else stamp - self._zero
        self._last = now if now > self._last else self._last + self._step
        return self._last
