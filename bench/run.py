"""Speed and memory of the backends on the demo clip, in one run: ``python bench/run.py``.

Backends are timed by turns, a block of frames each, so that a machine whose speed drifts hits all
alike; frames are decoded before the clock starts. ``--long`` runs one backend over the clip ten
times, forwards and backwards, and looks for growth. Writes a line of JSON a row, a Markdown table
and, for ``--long``, a plot of speed and memory against the frame number.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from engine import Segmenter
from engine.commands.demo import MASK, START, find_clip
from engine.commands.info import versions
from engine.errors import EngineError
from engine.masks import load_ids
from engine.runtime import BACKENDS, status
from engine.video import open_source

U8 = NDArray[np.uint8]
BLOCK = 10  # frames that a backend is timed for before it is the next one's turn
WARM_UP = 3
ENOUGH = 300  # samples below which a 99th percentile says nothing


def demo_frames(count: int) -> tuple[list[U8], U8]:
    """The first ``count`` frames [720, 1280, 3] of the demo and the mask of the first."""
    source = open_source(str(find_clip()))
    frames = [f.image for f in source.frames(START, START + count)]
    source.close()
    return frames, load_ids(MASK)


def back_and_forth(frames: list[U8], count: int) -> Iterator[U8]:
    """``count`` frames: the clip forwards, backwards, and so on."""
    lap = [*frames, *frames[-2:0:-1]]
    for i in range(count):
        yield lap[i % len(lap)]


def resident_mb() -> float:
    """Memory of this process in MB (Linux; NaN elsewhere)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def timed_step(seg: Segmenter, frame: U8) -> float:
    """Milliseconds of one step, resizing included."""
    began = time.perf_counter()
    seg.step(frame)
    return (time.perf_counter() - began) * 1e3


def compare(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Time all backends by turns on one video each; yields a row a backend."""
    frames, mask = demo_frames(90)
    names = [b for b in options.backends if not status()[b]]
    segs = {b: Segmenter.load(options.model, b, options.size, options.threads) for b in names}
    feeds = {b: back_and_forth(frames, 10**9) for b in names}
    times: dict[str, list[float]] = {b: [] for b in names}
    for b, seg in segs.items():
        seg.start(next(feeds[b]), mask)
        for _ in range(WARM_UP):
            seg.step(next(feeds[b]))
    with tqdm(total=options.frames * len(names), unit="frame") as bar:
        for begin in range(0, options.frames, BLOCK):
            for b, seg in segs.items():
                bar.set_description(b)
                for _ in range(min(BLOCK, options.frames - begin)):
                    times[b].append(timed_step(seg, next(feeds[b])))
                    bar.update()
    for b in options.backends:
        if b in names:
            yield row(options, b, "short", times[b], segs[b].model_hash)
        else:
            yield {"model": options.model, "backend": b, "status": f"absent: {status()[b]}"}


def long_run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The clip ten times forwards and backwards on the first backend; yields one row."""
    frames, mask = demo_frames(90)
    name, count = options.backends[0], 10 * 2 * len(frames)
    times, memory = [], []
    with Segmenter.load(options.model, name, options.size, options.threads) as seg:
        seg.start(frames[0], mask)
        for frame in tqdm(back_and_forth(frames, count), total=count, unit="frame"):
            times.append(timed_step(seg, frame))
            memory.append(resident_mb())
        result = row(options, name, "long", times, seg.model_hash)
    tenth = count // 10
    first, last = (statistics.median(t) for t in (times[:tenth], times[-tenth:]))
    result["last_tenth_fps_over_first"] = round(first / last, 3)
    result["memory_growth"] = round(memory[-1] / memory[tenth] - 1, 4)
    plot(options.out / "long.png", name, times, memory)
    yield result


def row(
    options: argparse.Namespace, backend: str, clip: str, times: list[float], model_hash: str
) -> dict[str, Any]:
    """One row of results; times in ms."""
    p50, p99 = np.percentile(times, (50, 99))
    return {
        "model": options.model,
        "model_hash": model_hash,
        "backend": backend,
        "memory": "finite",
        "clip": clip,
        "objects": 1,
        "size": options.size,
        "frames": len(times),
        "fps": round(1e3 / statistics.mean(times), 2),
        "median_fps": round(1e3 / float(p50), 2),
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1) if len(times) >= ENOUGH else None,
        "rss_mb": round(resident_mb(), 1),
        "status": "measured here",
    }


def plot(path: Path, name: str, times: list[float], memory: list[float]) -> None:
    """Speed and memory against the frame number, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5))
    window = 25
    smooth = [statistics.median(times[max(0, i - window) : i + 1]) for i in range(len(times))]
    top.plot([1e3 / t for t in smooth])
    top.set(title=f"{name}, one object", ylabel=f"FPS (median of {window})")
    bottom.plot(memory)
    bottom.set(ylabel="process memory, MB", xlabel="frame")
    for axes in (top, bottom):
        axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def markdown(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A table of the rows, and each backend's speed as a multiple of the reference's."""
    base = next((r["median_fps"] for r in rows if r["backend"] == "reference" and "fps" in r), None)
    yield "| backend | clip | frames | FPS | p50 ms | p99 ms | × reference |"
    yield "|---|---|---|---|---|---|---|"
    for r in rows:
        if "fps" not in r:
            yield f"| {r['backend']} | {r['status']} | | | | | |"
            continue
        ratio = f"{r['median_fps'] / base:.2f}" if base else ""
        p99 = r["p99_ms"] or ""
        yield (
            f"| {r['backend']} | {r['clip']} | {r['frames']} | {r['fps']} | {r['p50_ms']} | "
            f"{p99} | {ratio} |"
        )


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    p = argparse.ArgumentParser(prog="python bench/run.py", description=__doc__)
    p.add_argument("--model", default="mobilevos-mobilenetv2")
    p.add_argument("--backends", type=lambda s: s.split(","), default=list(BACKENDS))
    p.add_argument("--size", type=int, default=480)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--frames", type=int, default=60, help="timed frames a backend")
    p.add_argument("--long", action="store_true", help="the clip ten times; watch for growth")
    p.add_argument("--out", type=Path, default=Path("build/bench"))
    options = p.parse_args(argv)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        rows = list(long_run(options) if options.long else compare(options))
    except (EngineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    header = {"cpu": processor(), "threads": options.threads, "size": options.size} | versions()
    lines = [json.dumps(r) for r in ({"conditions": header}, *rows)]
    (options.out / ("long.jsonl" if options.long else "short.jsonl")).write_text("\n".join(lines))
    print(", ".join(f"{k} {v}" for k, v in header.items()), end="\n\n")
    print(*markdown(rows), sep="\n")
    for r in rows:
        if "memory_growth" in r:
            print(
                f"\nlast tenth's FPS over the first's: {r['last_tenth_fps_over_first']}; "
                f"memory growth since the first tenth: {r['memory_growth']:.2%}"
            )
    return 0


def processor() -> str:
    """The CPU's name and the number of cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [
            x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x
        ]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"


if __name__ == "__main__":
    raise SystemExit(main())
