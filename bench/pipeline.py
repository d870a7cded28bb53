"""The whole command on a video file: how much of the bare loop's speed is left."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.commands.options import SegmentOptions
from engine.commands.segment import segment
from engine.media.writer import VideoWriter

RATE = 24.0


def write_video(path: Path, frames: NDArray[np.uint8]) -> None:
    """Encode ``frames`` [T, H, W, 3] as the file that the command reads."""
    writer = VideoWriter(path, frames.shape[1:3], RATE)
    for i, frame in enumerate(frames):
        writer.write(frame, i / RATE)
    writer.close()


def command_fps(segmenter: Any, video: str, mask: Path, frames: int) -> dict[str, Any]:
    """Run ``segment`` on the first ``frames`` frames of ``video`` with a loaded Segmenter.

    Returns its FPS in all (decoding, PNG masks and overlay included, loading not) and the FPS of
    its steps, both as it tells them itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = SegmentOptions(video, Path(folder) / "out", mask, end=frames)
        lend = contextlib.nullcontext(segmenter)
        segment(options, say=lambda _: None, warn=lambda _: None, load=lambda _: lend)
        told = json.loads((Path(folder) / "out" / "summary.json").read_text())
    return {"command_fps": told["fps_total"], "command_step_fps": told["fps"]}
