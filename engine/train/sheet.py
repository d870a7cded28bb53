"""A picture of training clips: ``python -m engine.train.sheet --config NAME --out PNG``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from engine.errors import run
from engine.files import output_errors
from engine.media.overlay import overlay
from engine.train.config import DEVELOPMENT, HELD_OUT
from engine.train.data import Clips, phase_at
from engine.train.recipes import CONFIGS
from engine.train.sources import packed
from engine.train.start import RUNS


def main(argv: list[str] | None = None) -> int:
    """Draw 24 clips of a recipe, a row each, with their masks over them; returns the exit code."""
    p = argparse.ArgumentParser(prog="python -m engine.train.sheet", description=__doc__)
    p.add_argument("--config", required=True, choices=CONFIGS)
    p.add_argument("--davis", type=Path, nargs="+", required=True)
    p.add_argument("--stills", type=Path, required=True)
    p.add_argument("--step", type=int, default=0, help="the step whose phase is drawn")
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args(argv)
    return run(lambda: draw(args))


def draw(args: argparse.Namespace) -> None:
    """Write the picture; raises InputError for the data, OutputError for the file."""
    config = CONFIGS[args.config]
    exclude = (*DEVELOPMENT, *HELD_OUT)
    data = Clips(*packed(args.davis, args.stills, exclude, RUNS))
    phase = dataclasses.replace(phase_at(config, args.step), batch=24)
    batch = data.batch(np.random.default_rng([config.seed, args.step]), phase, config.occluder)
    rows = [
        np.hstack([overlay(f, m) for f, m in zip(frames, labels, strict=True)])
        for frames, labels in zip(batch.frames, batch.labels, strict=True)
    ]
    halves = np.hstack([np.vstack(rows[:12]), np.vstack(rows[12:])])
    with output_errors(args.out):
        Image.fromarray(halves).save(args.out)


if __name__ == "__main__":
    raise SystemExit(main())
