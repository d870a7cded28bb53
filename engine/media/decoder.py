"""One pass over a video with PyAV: pictures in order, and the truth about how it ended."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.errors import DamagedVideoError, InputError, TruncatedVideoError
from engine.media.container import told_size
from engine.media.numbering import Numbering, Unnumbered

if TYPE_CHECKING:
    from av import VideoFrame

# What a local file may be: films and recordings. Playlists, which make FFmpeg open what they name,
# are left out, and so are games' formats, whose decoders few have looked at.
_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,mxf,ogg,nut,ivf,obu,av1,h264,hevc,vvc,"
    "m4v,h263,mjpeg,mpjpeg,gif,apng,webp,webp_pipe,yuv4mpegpipe,dv,vc1,rm,wtv,gxf,swf,nsv,lxf,dirac,"
    "cavsvideo,avs2,avs3,live_flv,cine,r3d,ser,rawvideo,gif_pipe,png_pipe,jpeg_pipe"
)
_PROTOCOLS = "http,https,httpproxy,tls,tcp,udp,rtp,rtsp,rtmp,rtmps,rtmpt,rtmpts,srt,crypto"
#: The schemes of addresses that may be opened.
SCHEMES = frozenset({"http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt"})
# Containers whose packets lie one behind the other: bytes between two are headers, or damaged.
_PACKED = {"matroska", "webm", "flv", "avi"}
_BETWEEN = 200  # bytes of headers that may lie between two packets


class Decoder:
    """An opened video. Raises InputError if ``file`` cannot be opened or holds no video.

    file: a Path for a file, a binary stream for a pipe, else text as FFmpeg takes it. format: of a
    device. name: as the user knows it. live: a camera or a broadcast, where a missing start or a
    lost packet is no error.
    """

    def __init__(self, file: Path | BinaryIO | str, format: str | None, name: str, live: bool):
        import av

        self.name, self.live = name, live
        self.missing = self.damaged = 0  # frames lost and spoiled before the most recent picture
        self._path = file if isinstance(file, Path) else None
        try:
            # FFmpeg gets an open file, never its name, in which it would look for a protocol.
            self._file: Any = file.open("rb") if isinstance(file, Path) else file
            self._container: Any = av.open(
                self._file, format=format, **_options(self._file, format)
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            self._close_file()
            raise _cannot_open(error, name, isinstance(file, str)) from None
        stream = self._container.streams.best("video")
        if stream is None:
            self.close()
            raise InputError(
                f"'{name}' has no video in it, only sound or text, or it was copied only in part; "
                "pass another file, or copy it again"
            )
        self._stream: Any = stream
        self._stream.thread_type = "AUTO"
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate and 0 < rate < 1000 else 25.0
        self.time_base = float(self._stream.time_base or 0)
        self.frame_count: int | None = self._stream.frames or None
        kinds = set(self._container.format.name.split(","))
        # AVI has no time stamps but those that are made up from the order of packets.
        self._packed, self._counted = bool(kinds & _PACKED), "avi" in kinds
        seconds = 0 if live else self._container.duration or 0
        self._seconds = seconds / 1e6  # AV_TIME_BASE
        # Others, such as MPEG-TS and raw H.264, guess their duration from the bit rate.
        if self.frame_count is None and self._packed and seconds:
            self.frame_count = max(1, round(self._seconds * self.fps))
        self._numbering = Numbering(1 / self.fps, whole=bool(kinds & (_PACKED | {"mov"})))
        self._cut_off = False  # the last packet was incomplete
        self._read = -1  # the end of the last packet, in bytes from the start of the file
        self._reached = 0.0  # how many seconds the packets of any stream cover
        self._unread: Exception | None = None  # what ended the reading early

    def pictures(self) -> Generator[tuple[int, VideoFrame], None, None]:
        """Yield every good picture once, with its number.

        Raises TruncatedVideoError at the end of a video that breaks off, and DamagedVideoError at
        that of one that lacks frames or has spoiled ones.
        """
        import av

        numbering, count, broken = self._numbering, 0, ""
        try:
            if cut := self._how_it_is_cut():
                numbering.ends_at(self._last_time())
            for pictures in self._decoded():
                for picture in pictures:
                    index = count if self.live or self._counted else numbering.came(picture)
                    if index is None:
                        continue
                    self.missing = numbering.missing
                    self.damaged += picture.is_corrupt
                    count += 1
                    yield index, picture
        except Unnumbered:
            broken = "frames are missing, and how many cannot be told"
        except (av.FFmpegError, OSError) as error:
            broken = reason(error)
        if self.live or not count:
            return
        if not broken:
            numbering.finish()
            broken = "its last frame is incomplete" if self._cut_off else cut or self._unread_end()
        if broken:
            total = self.frame_count or 0
            of = f" of about {total}" if total > count else ""
            raise TruncatedVideoError(
                f"'{self.name}' breaks off after {count} frames{of}: {broken}; results up to "
                "there are kept; for the rest, copy or download the video again"
            )
        self.missing = numbering.missing
        self.check()

    def check(self) -> None:
        """Raise DamagedVideoError if frames before the most recent picture are lost or spoiled."""
        if self.live or not (self.missing or self.damaged):
            return
        found = []
        if self.missing:
            found.append(f"{self.missing} missing, the first is {self._numbering.first}")
        if self.damaged:
            found.append(f"{self.damaged} spoiled")
        raise DamagedVideoError(
            f"'{self.name}' is damaged, frames of it: {'; '.join(found)}; the masks of all others "
            "are kept under their true numbers; for the rest, copy or download the video again"
        )

    def _decoded(self) -> Iterator[list[VideoFrame]]:
        """Yield what each packet gives; what cannot be decoded is left to the numbering."""
        import av

        came, stamped = False, not self._counted
        for packet in self._packets():
            self._numbering.sent(packet)
            stamped = stamped and (packet.pts is not None or not packet.size)
            try:
                pictures = packet.decode()
            except av.FFmpegError:
                # Joined in the middle, a stream fails until its first key frame.
                if came and not stamped and not self.live:
                    yield self._rest()
                    raise
                continue
            came = came or bool(pictures)
            yield pictures
        if self._unread is not None:
            yield self._rest()
            raise self._unread

    def _packets(self) -> Iterator[Any]:
        """Yield the packets; a damaged one only if more follow, so that no half frame shows."""
        held = None
        start = (self._container.start_time or 0) / 1e6
        for packet in self._demux():
            if packet.size and packet.pts is not None and packet.time_base is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - start
                self._reached = max(self._reached, end)
            if self._packed and packet.size and (packet.pos or -1) >= 0:
                if 0 <= self._read < packet.pos - _BETWEEN:
                    if self._counted and self._holds_less_than_it_says():
                        self._unread = Unnumbered()
                        return
                    self._numbering.hole(packet)
                self._read = max(self._read, packet.pos + packet.size)
            if packet.stream is not self._stream:
                continue
            if held is not None and packet.size:
                yield held
            self._cut_off = held is not None and not packet.size
            held = None
            if packet.is_corrupt and packet.size and not self.live:
                self._numbering.hole(packet)
                held = packet
            else:
                yield packet

    def _demux(self) -> Iterator[Any]:
        """Yield the packets of all streams, up to an error, which is kept for later."""
        import av

        try:
            yield from self._container.demux()
        except (av.FFmpegError, OSError) as error:
            self._unread = error

    def _unread_end(self) -> str:
        """Say which part of the video lies behind a damage that the reading did not get over."""
        left = self._path.stat().st_size - self._read if self._path and self._packed else 0
        short = self._seconds - self._reached > 2 / self.fps
        if left > _BETWEEN and short:
            return f"of its {self._seconds:.1f} s {self._reached:.1f} s can be read"
        return ""

    def _again(self) -> Iterator[Any]:
        """Yield all packets of the stream, by another reading of the file."""
        import av

        if self._path is not None:
            with self._path.open("rb") as file, av.open(file, **_options(file, None)) as again:
                for packet in again.demux(again.streams[self._stream.index]):
                    if packet.size:
                        yield packet

    def _holds_less_than_it_says(self) -> bool:
        """Whether packets are missing of those that the header counts."""
        return sum(1 for _ in self._again()) < int(self._stream.frames or sys.maxsize)

    def _last_time(self) -> float:
        stamps = [packet.pts for packet in self._again() if packet.pts is not None]
        return max(stamps, default=0) * self.time_base

    def _rest(self) -> list[VideoFrame]:
        import av

        try:
            return list(self._stream.decode(None))
        except (av.FFmpegError, OSError):
            return []

    def _how_it_is_cut(self) -> str:
        """Say how much of the file is missing at its end; empty if nothing, or if unknown."""
        if self._path is not None:
            size, told = self._path.stat().st_size, told_size(self._path)
            if told > size:
                return f"its header tells of {told} bytes, but it has {size}"
        return ""

    def close(self) -> None:
        self._container.close()
        self._close_file()

    def _close_file(self) -> None:
        file = getattr(self, "_file", None)
        if self._path is not None and file is not None:
            file.close()


def _options(file: Any, format: str | None) -> dict[str, Any]:
    """Return PyAV's options that hold FFmpeg to what was asked for."""
    if format is not None:
        return {}
    if not isinstance(file, str):
        return {"options": {"format_whitelist": _FORMATS}, "io_open": _refuse}
    options = {"protocol_whitelist": _PROTOCOLS}
    if file.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"
    return {"options": options, "timeout": (15.0, 30.0)}


def _refuse(url: str, flags: int, options: dict[str, str]) -> Any:
    """Stand in for FFmpeg's opening of a file that a file names."""
    raise PermissionError(f"it names another file, '{url}'")


def _cannot_open(error: Exception, name: str, remote: bool) -> InputError:
    if remote:
        return InputError(
            f"cannot open {name}: {reason(error)}; check that it is connected, reachable and not "
            "in use"
        )
    import av

    # FFmpeg's answer where it knows the format, but is not to read it.
    why = "not of its formats" if isinstance(error, av.ArgumentError) else reason(error)
    return InputError(
        f"'{name}' is not a video that can be read: {why}; it may be a playlist or a file of "
        "another kind, or copied or downloaded only in part"
    )


def reason(error: Exception) -> str:
    """FFmpeg's or the system's reason in lower case, without file names and error numbers."""
    return str(getattr(error, "strerror", None) or error).rstrip(".").lower()
