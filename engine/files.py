"""Write files whole or not at all, and turn failures into one clear line."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from engine.errors import OutputError

_SAMPLES, _SAMPLE = 16, 1 << 14  # of a file's content, and the bytes of one
_ALL = _SAMPLES * _SAMPLE
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
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        number = getattr(error, "errno", None) or 0
        reason = _REASONS.get(number) or getattr(error, "strerror", None) or str(error)
        raise OutputError(f"cannot write '{path}': {reason}") from error


def make_folder(path: Path) -> None:
    """Create ``path`` and its parents; raise OutputError if files cannot be written there."""
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()


def part_of(path: Path) -> Path:
    """Return the temporary name that a file has until it is whole."""
    return path.with_name(f".{path.name}.part")


def create(path: Path) -> BinaryIO:
    """Open a new file to write to, in the place of one that a killed run has left, or a link."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def write_atomic(path: Path, data: bytes, sync: bool = True) -> None:
    """Write ``data`` beside ``path`` under a temporary name and move it there in one step.

    A process killed at any moment leaves the old file, the new one or none; so does a machine that
    loses its power, with ``sync``. Raises OutputError.
    """
    part = part_of(path)
    with output_errors(path):
        try:
            with create(part) as file:
                file.write(data)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            part.replace(path)
            if sync:
                sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise


def sync_file(path: Path) -> None:
    """Bring what was written to a file to the disk; raises OutputError."""
    with output_errors(path), path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk, on systems that can; raises OutputError."""
    if os.name == "posix":
        with output_errors(path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


class FolderLock:
    """Keeps other runs out of a folder until ``close``, or the end of the process.

    Raises OutputError if another run has it. Where locks do not work, as on Windows and on some
    network drives, it does nothing.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = None
        if sys.platform == "win32":
            return
        import fcntl

        with output_errors(path):
            self._descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise OutputError(
                f"another run is writing to '{path}'; wait for it, or choose another --out"
            ) from None
        except OSError:
            self.close()

    def close(self) -> None:
        """Let others in; may be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def sample_digest(path: Path) -> str:
    """Return the SHA-256 of a file's size and content: all up to 256 KiB, else 16 samples."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}\n".encode())
    with path.open("rb") as file:
        for k in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE) * k // (_SAMPLES - 1) if size > _ALL else k * _SAMPLE)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
