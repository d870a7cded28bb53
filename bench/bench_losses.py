"""Boundary sampling against all pixels, memory and time: ``python bench/bench_losses.py``.

L_repr of one object on features of the stride-4 grid, forward and backward, one thread. Each row
runs in a process of its own, whose highest resident memory is compared with that before the loss.
Prints a Markdown table; a row that would need more than ``--limit`` GB is estimated, not run.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import platform
import resource
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch

from engine.train.distill import blend, correlation, near_boundary, pick, representation

CHANNELS = 48  # the last ones of mobilevos-mobilenetv2's decoder
MATRICES = 7  # of N² floats that live at the same time, in the loss and its gradient; measured


@dataclass(frozen=True)
class Row:
    """A way to choose pixels on the stride-4 grid of a crop of ``size``; a band of 0 is all."""

    name: str
    size: tuple[int, int]
    band: int
    points: int | None


@dataclass(frozen=True)
class Figures:
    """N pixels, seconds of the median run and of the slowest, and the memory on top in bytes."""

    pixels: int
    median: float
    slowest: float
    memory: int


def disc(height: int, width: int) -> torch.Tensor:
    """A mask [1, height, width] of a tenth of the area, round: the least boundary there can be."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = (y - height / 2).square() + (x - width / 2).square()
    return (distance < 0.1 * height * width / math.pi).float()[None]


def measure(row: Row, repeats: int) -> Figures:
    """Run one row; the first run counts for the memory, but not for the time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    height, width = row.size[0] // 4, row.size[1] // 4
    mask = disc(height, width)
    student = torch.randn(CHANNELS, height * width, requires_grad=True)
    teacher = torch.randn(CHANNELS, height * width)
    warm = correlation(torch.randn(8, CHANNELS, requires_grad=True))  # libraries, before the count
    representation(warm, warm.detach()).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times, pixels = [], 0
    for n in range(repeats + 1):
        start = time.perf_counter()
        inside = near_boundary(mask, row.band).flatten()
        points = row.points if row.points else height * width
        at = pick(inside, points, np.random.default_rng(n))
        target = blend(correlation(teacher[:, at].T), mask.flatten()[at], 0.95)
        representation(correlation(student[:, at].T), target).backward()
        times.append(time.perf_counter() - start)
        pixels = len(at)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Figures(pixels, statistics.median(times[1:]), max(times[1:]), (after - before) * 1024)


def main() -> None:
    """Measure all rows and print the table."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--repeats", type=int, default=5, help="runs a row (default: %(default)s)")
    p.add_argument("--limit", type=float, default=2.0, help="GB a row (default: %(default)s)")
    args = p.parse_args()
    rows = [
        row
        for size in ((224, 384), (320, 544))
        for row in (
            Row("boundary ±4, at most 512", size, 4, 512),
            Row("boundary ±4, all", size, 4, None),
            Row("anywhere, at most 512", size, 0, 512),
            Row("all pixels", size, 0, None),
        )
    ]
    print(f"PyTorch {torch.__version__}, {platform.processor() or platform.machine()}, one thread")
    print(f"{CHANNELS} channels, one object of a tenth of the crop; forward and backward\n")
    print("| crop | pixels | N | ms, median | ms, slowest | memory on top, MB |")
    print("|---|---|---|---|---|---|")
    spawn = multiprocessing.get_context("spawn")
    for row in rows:
        place = f"{row.size[0]}×{row.size[1]} | {row.name}"
        pixels = row.size[0] * row.size[1] // 16
        needs = MATRICES * pixels**2 * 4
        if row.points is None and row.band == 0 and needs > args.limit * 1e9:
            print(f"| {place} | {pixels} | – | – | not run; about {MATRICES}·N²·4 B = "
                  f"{needs / 1e6:.0f} |")  # fmt: skip
            continue
        with spawn.Pool(1) as pool:
            x = pool.apply(measure, (row, args.repeats))
        print(
            f"| {place} | {x.pixels} | {x.median * 1e3:.1f} | {x.slowest * 1e3:.1f} "
            f"| {x.memory / 1e6:.0f} |", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
