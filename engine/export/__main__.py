"""Weights file and ONNX step graph of a trained network: ``python -m engine.export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.errors import run
from engine.export.files import export, load_average
from engine.model import CONFIGS, load
from engine.weights import DEFAULT_MODEL, find, graph_path, weights_path


def main(argv: list[str] | None = None) -> int:
    """Export the averaged weights of a training checkpoint, or the shipped ones anew."""
    p = argparse.ArgumentParser(prog="python -m engine.export", description=__doc__)
    p.add_argument(
        "checkpoint",
        type=Path,
        nargs="?",
        help="checkpoint.pt of python -m engine.train; default: the shipped weights",
    )
    p.add_argument("--model", default=DEFAULT_MODEL, choices=CONFIGS)
    p.add_argument("--out", type=Path, default=Path("build/weights"))
    args = p.parse_args(argv)

    def work() -> None:
        if args.checkpoint:
            model = load_average(args.model, args.checkpoint)
        else:
            model = load(args.model, find(args.model)[0])
        export(model, args.model, args.out)
        for path in (weights_path(args.model, args.out), graph_path(args.model, args.out)):
            print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")

    return run(work)


if __name__ == "__main__":
    raise SystemExit(main())
