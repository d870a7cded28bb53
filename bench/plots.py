"""The plots of a run, one PNG each."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Row
from bench.report import Results
from bench.stages import OTHER, STAGES
from engine.files import write_atomic

POLICY_STYLE = {"finite": "-", "infinite": "--", "own": "-."}
WINDOW = 5  # frames of the running median


def draw(results: Results, out: Path) -> list[Path]:
    """Draw what the results have data for; returns the files.

    Without matplotlib: nothing, and an empty list.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        return []
    matplotlib.use("Agg")
    files = []
    makers = {
        "fps": fps_over_frames,
        "memory": memory_over_frames,
        "stages": stage_bars,
    }
    for name, make in makers.items():
        (out / f"{name}.png").unlink(missing_ok=True)  # of an earlier run
        figure = make(results)
        if figure is None:
            continue
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=130)
        write_atomic(out / f"{name}.png", buffer.getvalue())
        _pyplot().close(figure)
        files.append(out / f"{name}.png")
    return files


def _pyplot() -> Any:
    from matplotlib import pyplot

    return pyplot


def _panels(results: Results) -> list[tuple[str, list[Row]]]:
    """The measured rows of one object at the largest size, a panel a model."""
    rows = results.measured()
    if not rows:
        return []
    size, objects = max(r["size"] for r in rows), min(r["objects"] for r in rows)
    kept = [r for r in rows if r["size"] == size and r["objects"] == objects]
    return [(m, [r for r in kept if r["model"] == m]) for m in _models(kept)]


def _colours(results: Results) -> dict[str, Any]:
    """A colour a backend, the same in every plot."""
    names = list(dict.fromkeys(r["backend"] for r in results.rows))
    cycle = _pyplot().rcParams["axes.prop_cycle"].by_key()["color"]
    return {name: cycle[i % len(cycle)] for i, name in enumerate(names)}


def _machine(results: Results) -> str:
    told = results.conditions
    return f"{told['cpu']}, GPU: {told['gpu']}, {told['threads']} thread(s)"


def _over_frames(results: Results, value: Any, label: str, title: str) -> Any:
    """A panel a model with a line a row over the frame number.

    ``value(row)`` gives the frames and values of the line, and a low and a high one that stand for
    all of it where the row is of a memory filled beforehand: that is drawn as one dot.
    """
    panels = _panels(results)
    if not panels:
        return None
    colours = _colours(results)
    figure, axes = _row_of_panels(len(panels))
    for axis, (model, rows) in zip(axes, panels, strict=True):
        dots: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for row in rows:
            x, y, low, high = value(row)
            who = (row["backend"], row["memory"])
            colour, hollow = colours[row["backend"]], row["memory"] == "infinite"
            name = None if who in dots else ", ".join(who)
            points = dots.setdefault(who, [])
            if row["clip"].startswith("prefilled"):
                middle = float(np.median(x)), float(np.median(y))
                points.append(middle)
                axis.errorbar(
                    *middle,
                    [[middle[1] - low], [high - middle[1]]],
                    fmt="o",
                    color=colour,
                    markerfacecolor="white" if hollow else colour,
                    capsize=3,
                    zorder=3,
                )
            else:
                style = POLICY_STYLE[row["memory"]]
                axis.plot(x, y, style, color=colour, linewidth=1.8, label=name)
        for who, points in dots.items():
            if points:  # between two measured stretches the line only guides the eye
                axis.plot(*zip(*points, strict=True), ":", color=colours[who[0]], linewidth=1.2)
        if (
            max(r["first_frame"] + r["frames"] for r in rows)
            > 3 * results.conditions["clip_frames"]
        ):
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
        size = f"{rows[0]['width']}×{rows[0]['height']}, {rows[0]['objects']} object(s)"
        note = ", random weights" if rows[0].get("random_weights") else ""
        axis.set_title(f"{model}\n{size}{note}", fontsize="medium")
        axis.set_xlabel("frame of the video")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel(label)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.suptitle(f"{title}\n{_machine(results)}", fontsize="medium")
    return figure


def _row_of_panels(count: int) -> tuple[Any, Any]:
    figure, axes = _pyplot().subplots(
        1, count, figsize=(max(8, 4.3 * count), 4.6), squeeze=False, layout="constrained"
    )
    return figure, axes[0]


def fps_over_frames(results: Results) -> Any:
    """FPS against the frame number, finite and infinite memory."""

    def value(row: Row) -> tuple[Any, Any, float, float]:
        times = np.array(row["times_ms"])
        pad = np.pad(times, (WINDOW // 2, WINDOW // 2), mode="edge")
        smooth = np.median(np.lib.stride_tricks.sliding_window_view(pad, WINDOW), axis=1)
        frames = row["first_frame"] + np.arange(len(times))
        if row["clip"].startswith("prefilled"):
            return frames, np.full(len(times), row["fps"]), row["fps_low"], row["fps_high"]
        return frames, 1e3 / smooth, row["fps_low"], row["fps_high"]

    return _over_frames(
        results,
        value,
        f"FPS (running median of {WINDOW})",
        "Speed over the video; dots with 95 % intervals: memory filled beforehand as at that frame",
    )


def memory_over_frames(results: Results) -> Any:
    """The process's resident memory against the frame number."""
    rows = results.measured()
    if any(mb is None for r in rows for _, mb in r["memory_mb"]):
        return None

    def value(row: Row) -> tuple[Any, Any, float, float]:
        frames, megabytes = zip(*row["memory_mb"], strict=True)
        return np.array(frames), np.array(megabytes), min(megabytes), max(megabytes)

    return _over_frames(
        results,
        value,
        "memory of the process, MB",
        "Memory over the video; dots: the networks' memory filled beforehand as at that frame",
    )


def stage_bars(results: Results) -> Any:
    """Milliseconds of each stage, a bar a row."""
    rows = [r for _, panel in _panels(results) for r in panel if r.get("stages")]
    if not rows:
        return None
    figure, axis = _pyplot().subplots(figsize=(10, 1.9 + 0.42 * len(rows)), layout="constrained")
    names = []
    for row in rows:
        late = "" if row["clip"] == "short" else f", {row['clip']}"
        names.append(
            f"{row['model'].removeprefix('mobilevos-')}, {row['backend']}, {row['memory']}{late}"
        )
    left = np.zeros(len(rows))
    colours = _pyplot().get_cmap("tab10").colors
    for i, stage in enumerate((*STAGES, OTHER)):
        width = np.array([row["stages"].get(stage, 0.0) for row in rows])
        colour = "lightgrey" if stage == OTHER else colours[i]
        axis.barh(names, width, left=left, label=stage, color=colour, edgecolor="white")
        for y, (x, w) in enumerate(zip(left, width, strict=True)):
            if w > 0.045 * max(sum(r["stages"].values()) for r in rows):
                axis.text(x + w / 2, y, f"{w:.0f}", ha="center", va="center", fontsize="small")
        left += width
    for y, total in enumerate(left):
        axis.text(total, y, f" {total:.0f} ms", va="center", fontsize="small")
    axis.set_xlim(0, 1.1 * left.max())
    axis.invert_yaxis()
    axis.set(xlabel="ms a frame, in a pass of its own: profiling costs time itself")
    axis.grid(alpha=0.3, axis="x")
    axis.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=len(STAGES) + 1, fontsize="small")
    figure.suptitle(f"Where a step's time goes\n{_machine(results)}", fontsize="medium")
    return figure


def _models(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in rows))
