"""What the command ``segment`` is to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.commands.prompt import Box
from engine.options import LoadOptions
from engine.weights import FOLDER


@dataclass(frozen=True)
class SegmentOptions:
    """What ``segment`` is to do, as the command line gives it. One of mask and box is needed."""

    source: str
    out: Path
    mask: Path | None = None
    box: Box | None = None
    resize_mask: bool = False
    start: int = 0
    end: int | None = None
    every: int = 1
    resume: bool = False
    overwrite: bool = False
    overlay: bool = True
    export: tuple[str, ...] = ()
    load: LoadOptions = field(default_factory=LoadOptions)
    credit: str | None = None

    def told(self) -> dict[str, Any]:
        """Return the options that decide the results, as JSON values."""
        values = {**asdict(self), **asdict(self.load)}
        values["box"] = self.box and list(self.box)
        for name in ("resume", "overwrite", "credit", "load", "output"):
            del values[name]
        if self.load.weights == FOLDER:
            values["weights"] = None  # where the package lies says nothing
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
