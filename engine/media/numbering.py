"""Which number a decoded picture has in its video, also where others before it are lost.

A decoder gives what it can; what it drops, it does not tell. So each picture is matched by its time
stamp with the packets that were read: a packet whose time has passed without a picture is a missing
frame. Where the packets themselves are lost, as behind a hole in a Matroska file, the time that
passed tells how many there were, if the stream has a constant rate.
"""

from __future__ import annotations

import bisect
from fractions import Fraction
from typing import Any

_LATE = 0.6  # of a frame's time: a packet closer than that to a picture is a part of it
_STEADY = 0.3  # of a frame's time: how much steps may differ at a constant rate (ticks round)
_AROUND = 1.0  # seconds about a hole in which a gap is laid to it: pictures are reordered


class Unnumbered(Exception):
    """Frames are missing, and how many cannot be told."""


class Numbering:
    """Counts the frames of one stream. ``step``: nominal time of a frame in seconds.

    whole: the stream was written from its beginning, so that frames before the first picture are
    lost; others, such as broadcasts, may be joined in the middle.
    missing: how many frames before the most recent picture were lost. first: the number of the
    first of them.
    """

    def __init__(self, step: float, whole: bool) -> None:
        self.step, self._whole = step, whole
        self.index = -1  # of the last picture
        self.missing = 0
        self.first: int | None = None
        self._eras: list[list[float]] = [[]]  # times of packets to come, a list per clock
        self._passed: set[float] = set()  # times of those that came to nothing, of this clock
        self._order: list[float] = []  # times of the packets sent before the first picture
        self._latest = 0.0  # of the times of packets
        self._base = Fraction(1)  # the packets' unit of time, in seconds
        self._dts: float | None = None
        self._time: float | None = None  # of the last picture
        self._steady = True
        self._holes: list[tuple[float, float]] = []

    def sent(self, packet: Any) -> None:
        """Note a packet that the decoder is given; those without a time stamp do not count."""
        if not packet.size or packet.is_discard or packet.pts is None:
            return
        dts = packet.dts
        if dts is not None:
            if self._dts is not None and dts < self._dts:
                self._eras.append([])  # the clock was set back: another recording begins
            self._dts = dts
        self._base = packet.time_base
        self._latest = float(packet.pts * packet.time_base)
        bisect.insort(self._eras[-1], self._latest)
        if self.index < 0:
            self._order.append(self._latest)

    def hole(self, packet: Any) -> None:
        """Note that data before ``packet`` are damaged, so that packets may be missing."""
        if packet.pts is not None:
            time = float(packet.pts * packet.time_base)
            self._holes.append((min(self._latest, time) - _AROUND, time + _AROUND))

    def ends_at(self, time: float) -> None:
        """Note that the file was cut off behind a packet of this time."""
        self._holes.append((time - _AROUND, time))

    def came(self, picture: Any) -> int | None:
        """Return the number of a picture; None for one that comes too late and must be dropped.

        Raises Unnumbered if frames before it are missing that cannot be counted.
        """
        if picture.pts is None:
            self.index += 1
            self._time = None if self._time is None else self._time + self.step
            return self.index
        # A decoder that conceals damage may leave the picture's own base open.
        time = float(picture.pts * (picture.time_base or self._base))
        if time in self._passed:
            return None
        era = next((e for e in self._eras if self._holds(e, time)), None)
        if era is not None and era is not self._eras[0]:
            del self._eras[: self._eras.index(era)]
            self._passed, self._time = set(), None
        waiting = self._eras[0]
        place = bisect.bisect_left(waiting, time)
        lost = waiting[:place]
        while place < len(waiting) and waiting[place] == time:
            place += 1
        del waiting[:place]
        if era is not None and self._time is not None:
            self._passed.update(lost)
            self._skip(lost, time)
        elif era is not None and self.index < 0 and self._whole and self._order[0] != time:
            # Before the very first packet nothing is lost, but what refers to an earlier recording.
            self._lose(len(set(lost)))
        self._time = time
        self.index += 1
        return self.index

    @staticmethod
    def _holds(era: list[float], time: float) -> bool:
        place = bisect.bisect_left(era, time)
        return place < len(era) and era[place] == time

    def _skip(self, lost: list[float], time: float) -> None:
        """Count the frames between the last picture and that of ``time``."""
        assert self._time is not None
        last = self._time
        frames = self._frames(lost, last, time)
        for stamp in [*frames, time]:
            steps = (stamp - last) / self.step
            known = any(a <= stamp and last <= b for a, b in self._holes)
            if steps > 1.5 and (known or frames):
                if not self._steady:
                    raise Unnumbered
                self._lose(round(steps) - 1)
            elif abs(steps - 1) > _STEADY:
                self._steady = False
            if stamp != time:
                self._lose(1)
            last = stamp

    def _frames(self, lost: list[float], last: float, time: float) -> list[float]:
        """Return those of the times ``lost`` that stand for a frame of their own.

        Packets without a picture are usual: second fields, and frames that are only referred to.
        Their times lie close to those of others.
        """
        frames = []
        for stamp in lost:
            if stamp - last > _LATE * self.step and time - stamp > _LATE * self.step:
                frames.append(stamp)
                last = stamp
        return frames

    def _lose(self, count: int) -> None:
        if count and self.first is None:
            self.first = self.index + 1
        self.index += count
        self.missing += count

    def finish(self) -> None:
        """Count what is left at the end of the stream, which came to nothing."""
        if self._time is not None:
            lost = [stamp for stamp in self._eras[0] if stamp > self._time]
            # No picture ends the last frame's time: infinitely far away.
            for _ in self._frames(lost, self._time, float("inf")):
                self._lose(1)
