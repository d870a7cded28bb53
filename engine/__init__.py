"""Follow objects through a video: give their masks in one frame, get them in every later one.

``__all__`` is the public API; every name in it is imported when it is first used.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.errors import (
        BackendError,
        DamagedVideoError,
        EngineError,
        InputError,
        MissingExtraError,
        ModelError,
        OutputError,
        StateError,
        TruncatedVideoError,
    )
    from engine.media.masks import read_mask, write_mask
    from engine.media.open import open_source
    from engine.media.overlay import overlay
    from engine.media.record import FrameRecords, Record, read_records
    from engine.media.source import Frame, Source
    from engine.media.writer import VideoWriter
    from engine.options import LoadOptions
    from engine.segmenter import Segmenter, Stats
    from engine.threads import prefetch

if importlib.util.find_spec("kernels.cards") is None:
    raise ImportError(
        "another package named 'kernels' lies in the place of this one's; install into a fresh "
        "environment: python -m venv .venv && .venv/bin/pip install ."
    )

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "DamagedVideoError",
    "EngineError",
    "Frame",
    "FrameRecords",
    "InputError",
    "LoadOptions",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "Record",
    "Segmenter",
    "Source",
    "StateError",
    "Stats",
    "TruncatedVideoError",
    "VideoWriter",
    "open_source",
    "overlay",
    "prefetch",
    "read_mask",
    "read_records",
    "write_mask",
]
_HOMES = {
    "Frame": "engine.media.source",
    "FrameRecords": "engine.media.record",
    "LoadOptions": "engine.options",
    "Record": "engine.media.record",
    "Segmenter": "engine.segmenter",
    "Source": "engine.media.source",
    "Stats": "engine.segmenter",
    "VideoWriter": "engine.media.writer",
    "open_source": "engine.media.open",
    "overlay": "engine.media.overlay",
    "prefetch": "engine.threads",
    "read_mask": "engine.media.masks",
    "read_records": "engine.media.record",
    "write_mask": "engine.media.masks",
}  # all others are errors


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "engine.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
