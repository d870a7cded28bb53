"""Command line of the trainer: ``python -m engine.train --config NAME --davis ROOT``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from engine.errors import EngineError, InputError, MissingExtraError
from engine.train.config import DEVELOPMENT, HELD_OUT, TrainConfig


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(
        prog="python -m engine.train", description="Train a network; killed, it resumes."
    )
    p.add_argument("--config", default="mobilenetv2-first", help="the recipe, see recipes.py")
    p.add_argument(
        "--davis", type=Path, nargs="+", required=True, help="folders laid out as DAVIS, 480p"
    )
    p.add_argument("--stills", type=Path, required=True, help="folder of <set>/images and masks")
    p.add_argument(
        "--exclude", nargs="*", default=[*DEVELOPMENT, *HELD_OUT], metavar="SEQ",
        help="sequences not trained on (default: the development split and the held-out quarter)",
    )  # fmt: skip
    p.add_argument(
        "--out", type=Path, help="checkpoints and log (default: ~/.cache/mobilevos/CONFIG)"
    )
    p.add_argument("--steps", type=int, help="train for another number of steps")
    p.add_argument(
        "--save-every", type=float, default=120.0, metavar="SECONDS",
        help="write a checkpoint this often (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("--start", metavar="FROM", help="start from another model, recipe or file")
    p.add_argument("--teacher", metavar="FROM", help="the teacher's weights, likewise")
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    p.add_argument(
        "--workers", type=int, default=0, help="processes that draw clips ahead (default: none)"
    )
    p.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    p.add_argument("--fp32", action="store_true", help="no bf16 or fp16 in convolutions")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return exit_code(train, parser().parse_args(argv))


def exit_code(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a command that trains; returns its exit code, after a line about what ended it early."""
    try:
        run(args)
    except EngineError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def train(args: argparse.Namespace) -> None:
    """Load the data, resume or begin, and train to the end."""
    try:
        import cv2
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtraError("training", str(error.name), "train") from error
    from engine.train.data import Clips
    from engine.train.distributed import place
    from engine.train.loop import Trainer
    from engine.train.recipes import CONFIGS
    from engine.train.sources import packed
    from engine.train.start import RUNS

    if args.config not in CONFIGS:
        raise InputError(f"unknown config '{args.config}'; choose one of: {', '.join(CONFIGS)}")
    config = override(CONFIGS[args.config], args)
    cv2.setNumThreads(1)
    if args.threads:
        torch.set_num_threads(args.threads)
    out = args.out or RUNS / args.config
    with place(args.device, args.fp32) as here:
        say = print if here.rank == 0 else lambda _: None
        clips = Clips(*packed(args.davis, args.stills, args.exclude, out.parent))
        say(f"{len(clips.videos)} videos, {len(clips.stills)} still images; writing to {out}")
        seen = sorted({v.name for v in clips.videos} & set(DEVELOPMENT))
        if seen:
            say(f"warning: {', '.join(seen)} of the development split are trained on: --exclude")
        trainer = Trainer(config, clips, out, here, args.workers)
        for line in trainer.resume() or [f"start: {trainer.says}"]:
            say(line)
        trainer.run(args.save_every)


def override(config: TrainConfig, args: argparse.Namespace) -> TrainConfig:
    """The recipe with what the command line changes in it."""
    if args.steps:
        config = dataclasses.replace(config, steps=args.steps)
    if args.start:
        config = dataclasses.replace(config, start=args.start)
    if args.teacher:
        if config.teacher is None:
            raise InputError(f"'{args.config}' has no teacher; leave --teacher out")
        teacher = dataclasses.replace(config.teacher, weights=args.teacher)
        config = dataclasses.replace(config, teacher=teacher)
    return config


if __name__ == "__main__":
    raise SystemExit(main())
