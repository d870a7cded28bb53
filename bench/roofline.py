"""What this CPU can do at most with a network: ``python bench/roofline.py`` (extra ``build``).

The layer report of ``python -m engine.build --report``, which states bounds of GPUs by their data
sheets, for the two peaks that are timed here: the rate of a product of matrices, and of a copy. Of
a benchmark's results on this machine it says what part of the peak they reach.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python bench/roofline.py`

import numpy as np

from bench.common import RESULTS, cores, words
from bench.report import read
from engine.errors import InputError, MissingExtraError, run
from engine.geometry import STRIDE
from engine.weights import MODELS, available, weights_path
from kernels.cards import CARDS, Card

SIZE = (480, 864)


@functools.cache
def analysis(
    model: str,
    size: tuple[int, int] = SIZE,
    objects: int = 1,
    precision: str = "fp32",
    cards: tuple[Card, ...] = CARDS,
) -> dict[str, Any]:
    """The layer report of ``model`` as data (`engine.cost.report.analyse`).

    size: (H, W), padded. A network without weights is made with random ones, which cost the same.
    Raises MissingExtraError without the extra ``build``.
    """
    try:
        from engine.cost.report import ReadShape, analyse
        from engine.export.stages import stage_graphs
        from engine.model import create, fuse, load

        made = load(model, weights_path(model)) if model in available() else fuse(create(model))
        graphs = stage_graphs(made, size, objects, precision)
    except ModuleNotFoundError as error:
        raise MissingExtraError("the bounds", str(error.name), "build") from error
    tokens = size[0] * size[1] // STRIDE**2
    shape = ReadShape(tokens, made.config.key_dim, made.config.value_dim, objects)
    return analyse(graphs, precision, shape, cards)


def measure_cpu(threads: int) -> Card:
    """This CPU's fp32 GEMM rate and copy rate (bytes read and written), the best of many tries.

    By PyTorch, or by NumPy, which takes its threads from the environment, where there is none.
    """
    multiply, copy, name = _torch_tools(threads) or _numpy_tools()
    n, length = 1536, 16_000_000
    gemm = 2 * n**3 / _best(multiply(n))
    rate = 2 * 4 * length / _best(copy(length))
    return Card(f"this CPU ({name}, {threads} thread(s))", (), gemm, None, rate, math.inf)


Maker = Callable[[int], Callable[[], Any]]


def _torch_tools(threads: int) -> tuple[Maker, Maker, str] | None:
    try:
        import torch
    except ModuleNotFoundError:
        return None
    torch.set_num_threads(threads)

    def multiply(n: int) -> Callable[[], Any]:
        a, b, out = torch.rand(n, n), torch.rand(n, n), torch.empty(n, n)
        return lambda: torch.mm(a, b, out=out)

    def copy(length: int) -> Callable[[], Any]:
        source, target = torch.rand(length), torch.empty(length)
        return lambda: target.copy_(source)

    return multiply, copy, "PyTorch's GEMM"


def _numpy_tools() -> tuple[Maker, Maker, str]:
    generator = np.random.default_rng(0)

    def multiply(n: int) -> Callable[[], Any]:
        a, b = (generator.random((n, n), np.float32) for _ in range(2))
        out = np.empty_like(a)
        return lambda: np.matmul(a, b, out=out)

    def copy(length: int) -> Callable[[], Any]:
        source = generator.random(length, np.float32)
        target = np.empty_like(source)
        return lambda: np.copyto(target, source)

    return multiply, copy, "NumPy's GEMM"


def _best(call: Callable[[], Any]) -> float:
    """The shortest time of one call among as many as fit into a second, five at least."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - began < 1:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def fractions(results: Any, cpu: Card) -> Iterator[str]:
    """What part of the measured GEMM peak the measured rows reach."""
    for row in results.measured("short"):
        if row["memory"] != "finite" or row["model"] not in MODELS:
            continue
        height, width = (n + -n % STRIDE for n in (row["height"], row["width"]))
        found = analysis(row["model"], (height, width), row["objects"], cards=(cpu,))
        rate = row["fps"] * found["total"]["gflop"]
        yield (
            f"{row['model']}, {row['backend']}, {row['width']}×{row['height']}, {row['objects']} "
            f"object(s): {row['fps']:.2f} FPS, {rate:.1f} GFLOP/s, "
            f"{1e9 * rate / cpu.fp32:.0%} of the GEMM rate"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the bounds."""
    p = argparse.ArgumentParser(prog="python bench/roofline.py", description=__doc__)
    p.add_argument("--models", type=words, default=MODELS)
    p.add_argument("--size", default="480x864", help="of the network's input; default: %(default)s")
    p.add_argument("--objects", type=int, default=1)
    p.add_argument("--threads", type=int, default=cores())
    p.add_argument(
        "--results",
        type=Path,
        default=Path("build/bench") / RESULTS,
        help="of a run on this machine, for the part of the peak that it reaches",
    )
    options = p.parse_args(argv)
    try:
        height, width = (int(n) for n in options.size.split("x"))
        if height % STRIDE or width % STRIDE or min(height, width, options.objects) < 1:
            raise ValueError
    except ValueError:
        p.error("--size must be HxW, multiples of 16; --objects from 1 on")
    return run(lambda: _print_bounds(options, (height, width)))


def _print_bounds(options: argparse.Namespace, size: tuple[int, int]) -> None:
    from engine.cost.report import render

    unknown = sorted(set(options.models) - set(MODELS))
    if unknown:
        raise InputError(f"unknown model '{unknown[0]}'; choose among: {', '.join(MODELS)}")
    cpu = measure_cpu(options.threads)
    rates = f"{cpu.fp32 / 1e9:.1f} GFLOP/s, copies {cpu.bandwidth / 1e9:.1f} GB/s"
    print(f"{cpu.name}: {rates}, both measured here; the rest is arithmetic\n")
    for model in options.models:
        found = analysis(model, size, options.objects, cards=(cpu,))
        print(f"# {model}, {size[0]}x{size[1]}, {options.objects} object(s)\n")
        print(render(found))
    if options.results.is_file():
        print(*fractions(read(options.results), cpu), sep="\n")


if __name__ == "__main__":
    raise SystemExit(main())
