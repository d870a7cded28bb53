"""Results as JSONL, as a Markdown table, and as a section of docs/benchmark.md."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import LONG, MEASURED, Plan, Row
from bench.timing import ENOUGH, ratio_interval
from engine.commands.info import versions
from engine.errors import InputError
from engine.files import write_atomic

BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmark.md"


@dataclass(frozen=True)
class Results:
    """A run: its conditions and its rows."""

    conditions: dict[str, Any]
    rows: list[Row]

    def measured(self, clip: str = "") -> list[Row]:
        """The rows with figures, of one clip or of all."""
        return [r for r in self.rows if r["status"] == MEASURED and clip in ("", r["clip"])]

    def find(self, like: Row, **other: Any) -> Row | None:
        """The measured row that is as ``like`` but for ``other``."""
        names = ("model", "backend", "memory", "objects", "size", "clip")
        wanted = {name: like[name] for name in names} | other
        for row in self.measured():
            if all(row[name] == wanted[name] for name in names):
                return row
        return None

    def over_reference(self, row: Row) -> tuple[float, float, float] | None:
        """Speed over the eager reference's on the same clip, with its interval."""
        base = self.find(row, backend="reference")
        return ratio_interval(row["times_ms"], base["times_ms"], paired=True) if base else None


def conditions(plan: Plan, arguments: Sequence[str]) -> dict[str, Any]:
    """All that the figures depend on and that can be found out."""
    return {
        "command": shlex.join(["python", "bench/run.py", *arguments]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": processor(),
        "gpu": gpu(),
        "threads": plan.threads,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "git": revision(),
        "clip_frames": plan.frames,
        "prefilled_frames": plan.prefilled,
        "versions": versions(),
    }


def processor() -> str:
    """The CPU's name and the number of cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        name = lines[0].split(":")[1].strip() if lines else name
    return f"{name}, {os.cpu_count()} cores"


def gpu() -> str:
    """The names of the GPUs with their driver, or "none"."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return _output(query) or "none"


def revision() -> str:
    """The git revision of the code, with "+" if it was changed since; "" outside of a clone."""
    head = _output(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"])
    changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return head + ("+" if changed else "")


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def write(path: Path, results: Results) -> None:
    """Write JSONL: the conditions, then an object a row."""
    lines = [json.dumps(x) for x in ({"conditions": results.conditions}, *results.rows)]
    write_text(path, "\n".join(lines))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_atomic(path, (text.rstrip("\n") + "\n").encode())


def read(path: Path) -> Results:
    """Read what `write` wrote; raises InputError if it is not that."""
    try:
        first, *rows = [json.loads(line) for line in path.read_text().splitlines()]
        return Results(first["conditions"], rows)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"'{path}' is not a benchmark's results ({type(error).__name__}); give the "
            "results.jsonl of a run"
        ) from error


def markdown(results: Results) -> str:
    """The whole table, with its conditions above it."""
    return "\n".join([*heading(results.conditions), "", *table(results), "", *flatness(results)])


def heading(told: dict[str, Any]) -> Iterator[str]:
    """The conditions in a few lines."""
    yield f"`{told['command']}`"
    parts = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    yield f"{told['cpu']}; GPU: {told['gpu']}; {told['threads']} thread(s); {told['system']}"
    yield f"{parts}; revision {told['git']}; {told['date']}; load average {told['load_average']}"
    yield (
        f"Clip: {told['clip_frames']} frames, decoded and shrunk beforehand. FPS of the median "
        f"frame with its 95 % bootstrap interval; p99 from {ENOUGH} frames on; × eager: over the "
        "reference, paired by turns."
    )


def table(results: Results) -> Iterator[str]:
    """A line a row, all figures."""
    yield (
        "| model | backend | memory | clip | objects × size | FPS | p50 / p90 / p99 / max ms | "
        "× eager | command FPS | peak MB | cold start s | IoU | J&F |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for r in results.rows:
        name = r["model"] + (" (random weights)" if r.get("random_weights") else "")
        first = f"| {name} | {r['backend']} | {r['memory']} | {r['clip']} | "
        first += f"{r['objects']} × {r['size']} | "
        if r["status"] != MEASURED:
            yield f"{first}{r['status']} | | | | | | | |"
            continue
        times = " / ".join(_cell(r[k], ".1f") for k in ("p50_ms", "p90_ms", "p99_ms", "max_ms"))
        yield first + " | ".join(
            [
                f"{r['fps']:.2f} [{r['fps_low']:.2f}, {r['fps_high']:.2f}]",
                times,
                interval(results.over_reference(r)),
                _cell(r.get("command_fps"), ".2f"),
                _cell(r["peak_mb"], ".0f"),
                _cell(r.get("cold_start_s"), ".1f"),
                _cell(r.get("iou"), ".4f"),
                _cell(r.get("jf"), ".3f") + " |",
            ]
        )


def interval(value: tuple[float, float, float] | None) -> str:
    """A ratio with its interval, "" for none."""
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]" if value else ""


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def flatness(results: Results) -> Iterator[str]:
    """Speed late in a video over speed early in it, and J&F as a clip goes on."""
    lines = []
    for late in results.measured(f"prefilled {LONG}x"):
        early = results.find(late, clip="prefilled 1x")
        if early is None:
            continue
        ratio = interval(ratio_interval(late["times_ms"], early["times_ms"], paired=True))
        lines.append(
            f"| {late['model']} | {late['backend']} | {late['memory']} | "
            f"{late['objects']} × {late['size']} | {early['fps']:.2f} | {late['fps']:.2f} | "
            f"{ratio} | {_cell(early['peak_mb'], '.0f')} → {_cell(late['peak_mb'], '.0f')} |"
        )
    if lines:
        yield (
            f"| model | backend | memory | objects × size | FPS at 1× | FPS at {LONG}× | "
            f"{LONG}× over 1× | peak MB |"
        )
        yield "|---|---|---|---|---|---|---|---|"
        yield from lines
    for row in results.measured("long"):
        yield (
            f"\n{row['model']} {row['backend']} {row['memory']}, {row['objects']} × {row['size']}: "
            f"last tenth's FPS over the first's {row['last_tenth_over_first']}, "
            f"memory since the first tenth {growth(row):+.1%}"
        )
    seen = set()
    for row in results.measured():
        who = (row["model"], row["backend"], row["memory"], row["size"])
        if row.get("jf_laps") and who not in seen:
            seen.add(who)
            stretches = " ".join(f"{x:.3f}" for x in row["jf_laps"])
            yield f"\nJ&F by tenth ({row['davis']}), {' '.join(map(str, who))}p: {stretches}"


def growth(row: Row) -> float:
    """Growth of the process's memory from the end of the first tenth to the end of a row."""
    samples = [mb for _, mb in row["memory_mb"]]
    early = samples[max(0, len(samples) // 10 - 1)]
    return samples[-1] / early - 1 if early and samples[-1] else float("nan")


def section(results: Results, plots: list[str]) -> str:
    """What a reader needs of a run, as Markdown."""
    told = results.conditions
    short = results.measured("short")
    if not short:
        raise InputError("the results have no measured row of the short clip; run the benchmark")
    # The threads and the sizes are of the run, whatever it was.
    lines = [
        f"Measured on {told['cpu']}, {told['threads']} thread(s), GPU: {told['gpu']}; "
        f"`{told['command']}`, revision {told['git']}, {told['date'][:10]}, "
        + ", ".join(f"{k} {v}" for k, v in told["versions"].items() if k != "mobilevos-engine")
        + ". FPS of the median frame (95 % interval), frames decoded beforehand; "
        "*command*: FPS of `python -m engine segment` with decoding, masks and overlay.",
        "",
        "| network | backend | size | objects | FPS | × eager | command | first mask after | "
        "peak MB | IoU with eager |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in short:
        if r["memory"] == "infinite":
            continue
        note = " (random weights)" if r.get("random_weights") else ""
        lines.append(
            f"| `{r['model']}`{note} | `{r['backend']}` | {r['width']}×{r['height']} | "
            f"{r['objects']} | {r['fps']:.1f} [{r['fps_low']:.1f}, {r['fps_high']:.1f}] | "
            f"{interval(results.over_reference(r)) or '–'} | {_cell(r.get('command_fps'), '.1f')} "
            f"| {_cell(r.get('cold_start_s'), '.1f')} s | {_cell(r['peak_mb'], '.0f')} | "
            f"{_cell(r.get('iou'), '.4f')} |"
        )
    absent = {(r["backend"], r["status"]) for r in results.rows if r["status"] != MEASURED}
    if absent:
        told_absent = "; ".join(f"`{b}` ({s})" for b, s in sorted(absent))
        lines += ["", f"Not measured: {told_absent}."]
    flat = list(flatness(results))
    if flat:
        lines += [
            "",
            f"Late in a video: the same networks with the memory as after one and after {LONG} "
            "times the clip. *finite* remembers two frames; *infinite* is STCN's policy, every "
            "fifth frame, on the same network. Filled beforehand and timed by turns. The finite "
            "memory has one size only, so its ratio shows the noise; `--clips long` plays it all.",
            "",
            *flat,
        ]
    lines += ["", *(f"![{Path(p).stem}]({p})" for p in plots)]
    return "\n".join(lines).rstrip()


def write_page(page: Path, results: Results, out: Path) -> None:
    """Put the section between the markers of ``page``, and the plots in ``out`` beside it.

    Raises InputError if the markers are not there, once each and in order.
    """
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(f"'{page}' must have the lines {BEGIN} and {END}, once each")
    plots = []
    for name in ("fps", "memory", "stages"):
        if (out / f"{name}.png").is_file():
            write_atomic(page.with_name(f"bench-{name}.png"), (out / f"{name}.png").read_bytes())
            plots.append(f"bench-{name}.png")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    write_text(page, f"{before}{BEGIN}\n{section(results, plots)}\n{END}{after}")
