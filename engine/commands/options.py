"""What the command ``segment`` is to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.bundle import DEFAULT_FOLDER
from engine.commands.prompt import Box


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
    model: str = "mobilevos-mobilenetv2"
    size: int = 480
    backend: str = "auto"
    threads: int | None = None
    weights: Path | None = None
    memory: str = "finite"
    tta: bool = False
    bundles: Path = DEFAULT_FOLDER
    expect_sha256: str | None = None
    credit: str | None = None

    def told(self) -> dict[str, Any]:
        """The options that decide the results, as JSON values."""
        skipped = ("resume", "overwrite", "credit")
        values = {k: v for k, v in asdict(self).items() if k not in skipped}
        for name in ("out", "mask", "weights", "bundles"):
            values[name] = None if values[name] is None else str(values[name])
        values["box"] = None if self.box is None else list(self.box)
        return values
