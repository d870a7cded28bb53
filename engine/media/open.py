"""Open a source of frames: a video file, a folder of images, a camera or a network stream."""

from __future__ import annotations

import sys
from pathlib import Path

from engine.errors import InputError
from engine.media.images import ImageFolder
from engine.media.source import Source
from engine.media.video import VideoSource

# Sources that run on whether or not they are read: a slow reader has to leave frames out.
_LIVE_SCHEMES = {"rtsp", "rtsps", "rtmp", "rtp", "udp", "srt"}


def open_source(source: str | Path) -> Source:
    """Open a video file, a folder of images, a camera index such as ``"0"``, or a stream's URL.

    Raises InputError if it is missing, unreadable, not a video, or has no frames.
    """
    name, path = str(source), Path(source)
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
