"""Training curves of one or more runs: ``python -m engine.train.plot LOG.jsonl --out PNG``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.errors import EngineError, InputError, MissingExtraError
from engine.files import make_folder, output_errors

TITLES = {
    "loss": "loss",
    "cross_entropy": "cross-entropy [nats]",
    "dice": "dice loss",
    "iou": "IoU of training clips",
    "logits": "logits' divergence [nats]",
    "representation": "N · L_repr [bits]",
    "rate": "rate, share of its top",
}
UNPLOTTED = ("step", "seconds", "norm")


def read_log(path: Path) -> dict[str, NDArray[np.float64]]:
    """The columns of a trainer's log; a last line cut short is left out.

    Raises InputError if there is nothing to plot.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise InputError(f"cannot read '{path}' ({error.strerror}); check its path") from None
    rows, names = [], list[str]()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            names = names or ["step", "loss", *(n for n in row if n not in ("step", "loss"))]
            rows.append([float(row[name]) for name in names])
        except (ValueError, LookupError, TypeError):
            if number < len(lines):
                raise InputError(f"line {number} of '{path}' is not of a trainer's log") from None
    if not rows:
        raise InputError(f"'{path}' holds no complete step yet")
    return dict(zip(names, np.array(rows).T, strict=True))


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Running mean over up to ``window`` neighbours of each value; fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - window // 2, 0), np.minimum(at + (window + 1) // 2, len(values))
    mean: NDArray[np.float64] = (total[high] - total[low]) / (high - low)
    return mean


def plot(logs: list[Path], out: Path, window: int) -> None:
    """Draw the runs over each other, a panel a figure; raises InputError and OutputError."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("plotting", str(error.name), "train") from error
    runs = [(path, read_log(path)) for path in logs]
    there = {name for _, run in runs for name in run if name not in UNPLOTTED}
    names = [n for n in TITLES if n in there] + sorted(there - TITLES.keys())
    figure = Figure(figsize=(8, 2 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), squeeze=False, sharex=True)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        for colour, (path, run) in enumerate(runs):
            if name not in run:
                continue
            label = path.parent.name or path.name
            values = run[name] if name == "rate" else smooth(run[name], window)
            axes.plot(run["step"], values, f"C{colour}", label=label, linewidth=1)
        axes.set_ylabel(TITLES.get(name, name))
        axes.grid(alpha=0.3)
    panels[0].legend()
    panels[-1].set_xlabel("step")
    make_folder(out.parent)
    with output_errors(out):
        figure.savefig(out, format="png", dpi=100)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    p = argparse.ArgumentParser(prog="python -m engine.train.plot", description=__doc__)
    p.add_argument("logs", nargs="+", type=Path, metavar="LOG.jsonl", help="a trainer's log.jsonl")
    p.add_argument("--out", type=Path, default=Path("curves.png"), help="default: %(default)s")
    p.add_argument("--window", type=int, default=50, help="steps averaged (default: %(default)s)")
    args = p.parse_args(argv)
    try:
        plot(args.logs, args.out, max(1, args.window))
    except EngineError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    print(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
