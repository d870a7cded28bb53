"""Frame sources: a video file, a folder of images, a camera or a network stream.

``open_source`` picks by the form of its argument. Every source yields `Frame`s: uint8 RGB
[H,W,3], upright (a phone's rotation applied), with the index and the time in the source.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.errors import InputError
from engine.media.decoder import Decoder, Image8, upright_image, upright_size

if TYPE_CHECKING:
    from av import VideoFrame

# Sources that run on whether or not they are read: a slow reader has to leave frames out.
_LIVE_SCHEMES = {"rtsp", "rtsps", "rtmp", "rtp", "udp", "srt"}


@dataclass(frozen=True)
class Frame:
    """A decoded frame: ``image`` uint8 RGB [H,W,3], ``time`` in seconds from the first frame."""

    index: int
    time: float
    image: Image8


class Source(Protocol):
    """What the rest of the program knows of a source; ``size`` is (H, W) of the upright frames."""

    name: str
    size: tuple[int, int]
    fps: float  # the average where the rate varies
    frame_count: int | None  # as declared; None where unknown, as for a camera
    live: bool

    def frames(self, start: int = 0, end: int | None = None, every: int = 1) -> Iterator[Frame]:
        """Frames ``start, start + every, …`` below ``end``, numbered as in the source.

        Raises InputError for an empty range or a frame of another size, and
        TruncatedVideoError after the last good frame of a source that breaks off.
        """
        ...

    def close(self) -> None:
        """Release the file or the device."""
        ...


def open_source(name: str) -> Source:
    """Open a video file, a folder of images, a camera index such as ``0``, or a stream's URL.

    Raises InputError if it is missing, unreadable, not a video, or has no frames.
    """
    from engine.media.images import ImageFolder

    path = Path(name)
    if name.isdecimal() and not path.exists():
        return VideoSource(*_camera(int(name)), name=f"camera {name}", live=True)
    if name.startswith("dshow://"):
        return VideoSource(name.removeprefix("dshow://"), "dshow", name=name, live=True)
    if name.startswith("/dev/video"):
        return VideoSource(name, "v4l2", live=True)
    if "://" in name:
        return VideoSource(name, live=name.split("://")[0].lower() in _LIVE_SCHEMES)
    try:
        if path.is_dir():
            return ImageFolder(path)
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise InputError(f"'{name}' does not exist; check the path of the input") from None
    except OSError as error:
        raise InputError(
            f"'{name}' cannot be read: {error.strerror}; check its permissions"
        ) from None
    if empty:
        raise InputError(f"'{name}' is empty (0 bytes); copy or download it again")
    return VideoSource(name)


def _camera(index: int) -> tuple[str, str]:
    """PyAV's (file, format) for a camera's number on this system."""
    if sys.platform == "darwin":
        return str(index), "avfoundation"
    if sys.platform == "win32":
        raise InputError("on Windows cameras have names: pass dshow://video=NAME as the input")
    return f"/dev/video{index}", "v4l2"


class VideoSource:
    """A `Source` of anything that PyAV opens; ``frames`` can be called again, but on a live one."""

    def __init__(
        self, file: str, format: str | None = None, name: str | None = None, live: bool = False
    ) -> None:
        self.name, self.live = name or file, live
        self._how = (file, format, self.name, live)
        self._decoder = Decoder(*self._how)
        self.fps, self.frame_count = self._decoder.fps, self._decoder.frame_count
        self._pictures = self._decoder.pictures()
        # The first picture is decoded here: only it tells the upright size, and that there is one.
        self._first = next(self._pictures, None)
        if self._first is None:
            self.close()
            raise InputError(
                f"'{self.name}' has no frame that can be decoded; check that it plays in a "
                "video player, or convert it to H.264"
            )
        self.size = upright_size(self._first)

    def frames(self, start: int = 0, end: int | None = None, every: int = 1) -> Iterator[Frame]:
        """See `Source.frames`. Skipped frames are decoded, so that an index is always exact."""
        check_range(start, end, every)
        clock, index = _Clock(self.fps, self._decoder.time_base), -1
        for index, picture in enumerate(self._all_pictures()):
            if end is not None and index >= end:
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

    def _all_pictures(self) -> Iterator[VideoFrame]:
        if self._first is None:
            if self.live:
                raise InputError(f"{self.name} is live and can be read only once")
            self._decoder.close()
            self._decoder = Decoder(*self._how)
            self._pictures = self._decoder.pictures()
        else:
            first, self._first = self._first, None
            yield first
        yield from self._pictures

    def close(self) -> None:
        """Release the file; a live source, which a thread may still be reading, when unused."""
        if not self.live:
            self._decoder.close()


class _Clock:
    """Seconds since the first picture, always rising, also where time stamps lack or jump back."""

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


def check_range(start: int, end: int | None, every: int) -> None:
    """Raise InputError unless ``start``, ``end`` and ``every`` select something."""
    if start < 0 or every < 1:
        raise InputError("--start counts from 0 and --every from 1; give larger values")
    if end is not None and end <= start:
        raise InputError(f"--end {end} leaves no frame after --start {start}; give a larger --end")


def check_reached(start: int, count: int, name: str) -> None:
    """Raise InputError if ``start`` lies behind the ``count`` frames of the source."""
    if start >= count:
        raise InputError(f"--start {start} is too late: '{name}' has only {count} frames (from 0)")


def size_change(what: str, size: tuple[int, int], first: tuple[int, int]) -> InputError:
    """The error for a frame whose size (H, W) differs from the first one's."""
    return InputError(
        f"{what} is {size[1]}x{size[0]} but the first frame is {first[1]}x{first[0]}; "
        "convert the input to one size, or leave these frames out"
    )
