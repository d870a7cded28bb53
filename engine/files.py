"""Write files whole or not at all, and turn failures into one clear line."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from engine.errors import OutputError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space, then run again with --resume",
    errno.EDQUOT: "your disk quota is used up; free some space, then run again with --resume",
    errno.EACCES: "no permission; choose another folder with --out",
    errno.EPERM: "no permission; choose another folder with --out",
    errno.EROFS: "the file system is read-only; choose another folder with --out",
    errno.ENOTDIR: "a part of its path is a file, not a folder; choose another folder with --out",
    errno.EEXIST: "a file of that name is in the way; choose another folder with --out",
    errno.EISDIR: "a folder of that name is in the way; choose another folder with --out",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one with --out",
}


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's error inside the block into an OutputError about ``path``."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
        raise OutputError(f"cannot write '{path}': {reason}") from error


def make_folder(path: Path) -> None:
    """Create ``path`` and its parents; raise OutputError if files cannot be written there."""
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write-test"
        probe.touch()
        probe.unlink()


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` under a temporary name and move it there in one step.

    A process killed at any moment leaves the old file, the new one or none; raises OutputError.
    """
    part = path.with_name(f".{path.name}.part")
    with output_errors(path):
        try:
            part.write_bytes(data)
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
