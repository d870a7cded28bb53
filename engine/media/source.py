"""What every source of frames offers; `engine.media.open.open_source` opens one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from engine.errors import InputError
from engine.media.picture import Image8


@dataclass(frozen=True)
class Frame:
    """A decoded frame: ``image`` uint8 RGB [H,W,3], ``time`` in seconds from the first frame."""

    index: int
    time: float
    image: Image8


class Source(Protocol):
    """A source of frames; ``size`` is (H, W) of the upright frames."""

    name: str
    size: tuple[int, int]
    fps: float  # the average where the rate varies
    frame_count: int | None  # as declared; None where unknown, as for a camera
    live: bool

    @property
    def missing(self) -> int:
        """How many frames up to the most recent one were lost."""
        ...

    @property
    def damaged(self) -> int:
        """How many of those that came are spoiled, by what the decoder tells."""
        ...

    def fingerprint(self) -> str | None:
        """A digest of the content; None for what cannot be read again, as a camera or a pipe."""
        ...

    def frames(self, start: int = 0, end: int | None = None, every: int = 1) -> Iterator[Frame]:
        """Yield the frames ``start, start + every, …`` below ``end``, numbered as in the source.

        Raises InputError for an empty range or a frame of another size, TruncatedVideoError after
        the last good frame of a source that breaks off, and DamagedVideoError after the last frame
        of one that lacked some or had spoiled ones; the numbers of the others are true.
        """
        ...

    def close(self) -> None:
        """Release the file or the device."""
        ...


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
