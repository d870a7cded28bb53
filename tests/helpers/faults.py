"""A disk that fails: the n-th call to it raises, is the last of the process, or cuts the power."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

KILLED = 137


class Disk:
    """Watches the calls below a folder.

    at: the number, from 1, of the call that ``fail`` is called for instead; 0: none. room: how many
    bytes fit on the disk. calls: the names of the calls so far.
    """

    def __init__(
        self,
        folder: Path,
        at: int = 0,
        fail: Callable[[], None] | None = None,
        room: float = float("inf"),
    ) -> None:
        self.folder, self.at, self.fail, self.room = folder.absolute(), at, fail, room
        self.calls: list[str] = []
        self.unsynced: set[int] = set()  # inodes of files whose content may lie in memory only
        self._lock = threading.Lock()

    def call(self, name: str) -> None:
        """Count a call; raises, or does not return, if it is the one that fails."""
        with self._lock:
            self.calls.append(name)
            due = len(self.calls) == self.at
        if due and self.fail is not None:
            self.fail()

    def cut_power(self) -> None:
        """Lose what was not synced, then end the process."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path.stat().st_ino in self.unsynced:
                os.truncate(path, 0)
        os._exit(KILLED)

    def watches(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and Path(path).absolute().is_relative_to(
            self.folder
        )

    @contextlib.contextmanager
    def plugged_in(self) -> Iterator[Disk]:
        """Let all calls of the engine go to this disk."""
        disk = self

        def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Any, *args: Any, **more: Any) -> Any:
                if disk.watches(path):
                    disk.call(name)
                return real(path, *args, **more)

            return call

        def open_path(path: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
            if not disk.watches(path) or mode not in ("xb", "rb+"):
                return real_open(path, mode, *args, **more)
            disk.call("open")
            return Watched(disk, path, mode) if mode == "xb" else real_open(path, mode)

        def fsync(descriptor: int) -> None:
            disk.call("fsync")
            disk.unsynced.discard(os.fstat(descriptor).st_ino)
            real_fsync(descriptor)

        real_open, real_fsync = Path.open, os.fsync
        patches = [
            mock.patch.object(Path, name, watched(name, getattr(Path, name)))
            for name in ("replace", "unlink", "mkdir")
        ]
        patches += [
            mock.patch.object(Path, "open", open_path),
            mock.patch.object(os, "fsync", fsync),
            mock.patch.object(os, "open", watched("open", os.open)),
            mock.patch.object(
                tempfile, "TemporaryFile", lambda dir: (disk.call("open"), io.BytesIO())[1]
            ),
        ]
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            yield self


class Watched(io.BufferedWriter):
    """A file on a `Disk`."""

    def __init__(self, disk: Disk, path: Path, mode: str) -> None:
        super().__init__(io.FileIO(path, mode.replace("b", "")))
        self.disk = disk

    def write(self, data: Any) -> int:
        self.disk.call("write")
        self.disk.unsynced.add(os.fstat(self.fileno()).st_ino)
        size = memoryview(data).nbytes
        if size > self.disk.room:
            super().write(memoryview(data).cast("B")[: int(self.disk.room)])
            self.disk.room = 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.disk.room -= size
        return super().write(data)


def raising(number: int) -> Callable[[], None]:
    """What a disk does that fails with an error of the system."""

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


def in_child(work: Callable[[], int]) -> int:
    """Run ``work`` in a copy of this process; returns its exit code, negative for a signal.

    The copy has one thread alone. So it never collects what this process has left: a codec, for
    instance, would wait for threads that are not there.
    """
    gc.collect()
    gc.freeze()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
