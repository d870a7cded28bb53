"""Real-time video object segmentation: give the first mask, get every later one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.segmenter import Segmenter as Segmenter

__version__ = "0.1.0"
__all__ = ["Segmenter", "__version__"]


def __getattr__(name: str) -> Any:
    """Import ``Segmenter`` on first use, so that ``import engine`` stays light."""
    if name == "Segmenter":
        from engine.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
