"""One pass over a video with PyAV: pictures in order, and the truth about how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError, TruncatedVideoError

if TYPE_CHECKING:
    from av import VideoFrame

Image8 = NDArray[np.uint8]

# Containers that state their duration in a header written when the file was finished.
# For others (MPEG-TS, raw H.264) it is guessed from the bit rate: no ground for an alarm.
_DECLARING = {"mov", "mp4", "matroska", "webm", "avi", "flv"}


class Decoder:
    """An opened video. Raises InputError if ``file`` cannot be opened or holds no video.

    file, format: as PyAV takes them. name: as the user knows it. live: a camera or a broadcast,
    where a missing start or a lost packet is no error.
    """

    def __init__(self, file: str, format: str | None, name: str, live: bool) -> None:
        import av

        self.name, self.live = name, live
        remote = "://" in file
        try:
            self._container = av.open(
                file,
                format=format,
                options={"rtsp_transport": "tcp"} if file.startswith("rtsp") else {},
                timeout=(15.0, 30.0) if remote else None,
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            why = reason(error)
            if live or remote:
                advice = "check that it is connected, reachable and not in use"
                raise InputError(f"cannot open {name}: {why}; {advice}") from None
            raise InputError(
                f"'{name}' is not a video that can be read: {why}; "
                "it may be a file of another kind, or copied or downloaded only in part"
            ) from None
        if not self._container.streams.video:
            self._container.close()
            raise InputError(
                f"'{name}' has no video in it, only sound or text, or it was copied only in part; "
                "pass another file, or copy it again"
            )
        self._stream: Any = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate and 0 < rate < 1000 else 25.0
        self.time_base = float(self._stream.time_base or 0)
        self.seconds = self._declared_seconds()
        self.frame_count: int | None = self._stream.frames or None
        if self.frame_count is None and self.seconds is not None:
            self.frame_count = max(1, round(self.seconds * self.fps))
        self._reached = 0.0  # how many seconds the packets read so far cover, of any stream
        self._cut_off = False  # the last packet was incomplete

    def _declared_seconds(self) -> float | None:
        duration = self._container.duration
        if (
            self.live
            or not duration
            or not _DECLARING & set(self._container.format.name.split(","))
        ):
            return None
        return float(duration) / 1e6  # AV_TIME_BASE

    def pictures(self) -> Iterator[VideoFrame]:
        """Yield every good picture once; raise TruncatedVideoError at the end of a broken video."""
        import av

        count, broken = 0, ""
        try:
            for packet in self._packets():
                try:
                    pictures = packet.decode()
                except av.InvalidDataError:
                    # Joined in the middle, a stream fails until its first key frame.
                    if count == 0 or self.live:
                        continue
                    raise
                for picture in pictures:
                    count += 1
                    yield picture
        except (av.FFmpegError, OSError) as error:
            broken = reason(error)
            for picture in self._rest():
                count += 1
                yield picture
        if not broken and self._cut_off:
            broken = "its last frame is incomplete"
        if not broken and self._too_short():
            broken = f"it says {self.seconds:.1f} s but holds {self._reached:.1f} s"
        if broken and count:
            total = self.frame_count or 0
            of = f" of about {total}" if total > count else ""
            raise TruncatedVideoError(
                f"'{self.name}' breaks off after {count} frames{of}: {broken}; results up to "
                "there are kept; for the rest, copy or download the video again"
            )

    def _packets(self) -> Iterator[Any]:
        """Yield the packets; a damaged one only if more follow, so that no half frame shows."""
        streams = [s for s in self._container.streams if s is self._stream or s.type == "audio"]
        start = (self._container.start_time or 0) / 1e6
        held = None
        for packet in self._container.demux(streams):
            if packet.size and packet.pts is not None and packet.time_base is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - start
                self._reached = max(self._reached, end)
            if packet.stream is not self._stream:
                continue
            if held is not None and packet.size:
                yield held
            self._cut_off = held is not None and not packet.size
            held = None
            if packet.is_corrupt and packet.size and not self.live:
                held = packet
            else:
                yield packet

    def _rest(self) -> list[VideoFrame]:
        import av

        try:
            return list(self._stream.decode(None))
        except (av.FFmpegError, OSError):
            return []

    def _too_short(self) -> bool:
        if self.seconds is None:
            return False
        # Headers round, and tracks end a little apart: only a clear shortfall counts.
        return self.seconds - self._reached > max(0.25, 4 / self.fps, 0.02 * self.seconds)

    def close(self) -> None:
        self._container.close()


def reason(error: Exception) -> str:
    """FFmpeg's or the system's reason in lower case, without file names and error numbers."""
    return str(getattr(error, "strerror", None) or error).rstrip(".").lower()


def orientation(picture: VideoFrame) -> tuple[int, int, int, int]:
    """The signs (a, b, c, d) of a picture's display matrix: x' = a·x + c·y, y' = b·x + d·y."""
    side: Any = picture.side_data.get("DISPLAYMATRIX")
    if side is None:
        return (1, 0, 0, 1)
    m = np.frombuffer(bytes(side), np.int32)[[0, 1, 3, 4]].astype(np.float64)
    limit = 0.5 * float(np.abs(m).max())
    a, b, c, d = (int(np.sign(v)) if abs(v) > limit else 0 for v in m)
    # An oblique angle cannot be applied without resampling; players ignore it as well.
    return (a, b, c, d) if abs(a * d - b * c) == 1 else (1, 0, 0, 1)


def upright_size(picture: VideoFrame) -> tuple[int, int]:
    """(H, W) of the picture as it is to be seen."""
    turned = orientation(picture)[0] == 0
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def upright_image(picture: VideoFrame) -> Image8:
    """The picture as contiguous uint8 RGB [H,W,3], turned as its display matrix says."""
    # One thread: FFmpeg would start some for each picture, which costs five times the conversion.
    image = picture.reformat(format="rgb24", threads=1).to_ndarray()
    a, b, c, d = orientation(picture)
    if a == 0:
        image = image.transpose(1, 0, 2)
        a, d = c, b
    return np.ascontiguousarray(image[:: d or 1, :: a or 1], dtype=np.uint8)
