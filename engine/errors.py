"""The errors that a user can meet. Each message says what happened, why, and what to do.

The command line prints ``severity`` and the message on one line and exits with ``exit_code``.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of every error that the engine raises on purpose."""

    exit_code = 2
    severity = "error"


class InputError(EngineError, ValueError):
    """The caller's video, frame, mask or option cannot be used as it is."""


class StateError(EngineError, RuntimeError):
    """A call in the wrong order, such as ``step`` before ``start``."""


class TruncatedVideoError(InputError):
    """The video ended in the middle; everything before the break was good and is kept."""

    exit_code = 3
    severity = "warning"


class OutputError(EngineError, OSError):
    """Results cannot be written: no permission, a full disk, a file in the way."""


class ModelError(EngineError):
    """Unknown model, missing weights, or a weights file that fails its checks."""


class BackendError(EngineError):
    """A backend was asked for that cannot run here."""


class MissingExtraError(BackendError):
    """An optional dependency is not installed.

    Parameters
    ----------
    what: what was asked for, as the user knows it, such as ``"backend 'reference'"``.
    package: the import that failed.
    extra: the extra of ``mobilevos-engine`` that brings it.
    """

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the package '{package}', which is not installed; "
            f"run: pip install 'mobilevos-engine[{extra}]'"
        )
