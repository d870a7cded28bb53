"""The errors that a user can meet. Each message says what happened, why, and what to do.

`run` prints ``severity`` and the message on one line and returns ``exit_code``: every command's way
from an exception to an exit code.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

_PATIENCE = 1.0  # seconds in which several signals are one


class EngineError(Exception):
    """Base of every error that the engine raises on purpose."""

    exit_code = 2
    severity = "error"


class InputError(EngineError, ValueError):
    """The caller's video, frame, mask or option cannot be used as it is."""


class StateError(EngineError, RuntimeError):
    """A call in the wrong order, such as ``step`` before ``start``."""


class DamagedVideoError(InputError):
    """Frames of the video are missing or spoiled; the results of all others are good and kept."""

    exit_code = 3
    severity = "warning"


class TruncatedVideoError(DamagedVideoError):
    """The video ended in the middle; everything before the break was good and is kept."""


class OutputError(EngineError, OSError):
    """Results cannot be written: no permission, a full disk, a file in the way."""


class ModelError(EngineError):
    """Unknown model, missing weights, or a weights file that fails its checks."""


class BackendError(EngineError):
    """A backend was asked for that cannot run here."""


class MissingExtraError(BackendError):
    """An optional package is not installed.

    Parameters
    ----------
    what: what was asked for, as the user knows it, such as ``"backend 'reference'"``.
    package: the import that failed.
    extra: the extra of ``mobilevos-engine`` that brings it.
    """

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the package '{package}', which is not installed; "
            f"run: {pip_install(extra)}"
        )


def pip_install(extra: str) -> str:
    """Return the command that installs an extra, for the folder of this repository."""
    return f"pip install '.[{extra}]'"


def one_line(text: object) -> str:
    """Return the text with every run of white space as one space."""
    return " ".join(str(text).split())


def run(command: Callable[[], object]) -> int:
    """Run a command and return its exit code: 0, or what the exception that ended it says.

    2 for errors of use and of the operating system, 3 for a damaged video, 130 for Ctrl-C, 143 for
    SIGTERM, which stops a command in the same way. Errors and warnings become one line each on
    stderr; a bug keeps its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    stopped: list[int] = []
    try:
        with _signals(stopped), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            command()
        sys.stdout.flush()
    except EngineError as error:
        print(f"{error.severity}: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has left; at exit Python would flush once more and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + (stopped or [signal.SIGINT])[-1]
    return 0


@contextlib.contextmanager
def _signals(stopped: list[int]) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into KeyboardInterrupt and note their numbers.

    Those that follow within a second are taken as one, so that the work can be brought to an end.
    """
    last = -_PATIENCE

    def stop(number: int, frame: object) -> None:
        nonlocal last
        if time.monotonic() - last >= _PATIENCE:
            last = time.monotonic()
            stopped.append(number)
            raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            # Stopped, the process ends now, and nothing is to disturb that.
            signal.signal(number, signal.SIG_IGN if stopped else handler)


def _show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    print(f"warning: {one_line(message)}", file=sys.stderr)
