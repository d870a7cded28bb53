"""Open a source of frames: a video file, a folder of images, a camera or a network stream."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

from engine.errors import InputError
from engine.media.decoder import SCHEMES, reason
from engine.media.images import ImageFolder
from engine.media.source import Source
from engine.media.video import VideoSource

# Sources that run on whether or not they are read: a slow reader has to leave frames out.
_LIVE_SCHEMES = {"rtsp", "rtsps", "rtmp", "rtp", "udp", "srt"}


def open_source(source: str | Path) -> Source:
    """Open a video file, a folder of images, a camera index such as ``"0"``, or a stream's URL.

    ``-`` is a video on standard input. Raises InputError if it is missing, unreadable, not a video,
    or has no frames.
    """
    name, path = str(source), Path(source)
    if name.isdecimal() and not path.exists():
        return VideoSource(*_camera(int(name)), name=f"camera {name}", live=True)
    if name.startswith("dshow://"):
        return VideoSource(name.removeprefix("dshow://"), "dshow", name=name, live=True)
    if name.startswith("/dev/video"):
        return VideoSource(name, "v4l2", live=True)
    scheme = name.split("://")[0].lower() if "://" in name else ""
    if scheme in SCHEMES:
        return VideoSource(name, live=scheme in _LIVE_SCHEMES)
    if name == "-" or name.startswith(("/dev/stdin", "/dev/fd/", "/proc/self/fd/")):
        return _piped("/dev/stdin" if name == "-" else name)
    try:
        kind = path.stat()
        if stat.S_ISDIR(kind.st_mode):
            return ImageFolder(path)
        if stat.S_ISREG(kind.st_mode):
            path.open("rb").close()
    except FileNotFoundError:
        if scheme:
            raise InputError(
                f"'{name}' has a scheme that is not read; those are: {', '.join(sorted(SCHEMES))}"
            ) from None
        raise InputError(f"'{name}' does not exist; check the path of the input") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = reason(error)
        raise InputError(f"'{name}' cannot be read: {why}; check its path and rights") from None
    if not stat.S_ISREG(kind.st_mode):
        raise InputError(
            f"'{name}' is a pipe or a device, not a file; give - as the input and pipe the video in"
        )
    if not kind.st_size:
        raise InputError(f"'{name}' is empty (0 bytes); copy or download it again")
    return VideoSource(path)


def _piped(name: str) -> Source:
    """A video on standard input or another descriptor; from a file that was redirected, too."""
    if name == "/dev/stdin":
        return VideoSource(sys.stdin.buffer, name="standard input")
    return VideoSource(Path(name).open("rb"), name=name)


def _camera(index: int) -> tuple[str, str]:
    """PyAV's (file, format) for a camera's number on this system."""
    if sys.platform == "darwin":
        return str(index), "avfoundation"
    if sys.platform == "win32":
        raise InputError("on Windows cameras have names: pass dshow://video=NAME as the input")
    return f"/dev/video{index}", "v4l2"
