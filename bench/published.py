"""The paper's figures beside ours, each cell marked with where it comes from.

``paper.json`` holds a row a system: parameters in millions; ``davis16`` and ``davis17``: J&F, J, F,
FPS; ``a40`` and ``gtx1080ti``: FPS on a short and on a long (10×) clip; ``model``: our name for it.
Published: Miles, Yucel, Manganelli, Saà-Garriga, "MobileVOS", CVPR 2023, tables of the poster.
The FPS in its DAVIS columns were copied from each system's own authors, on their own GPUs; only the
A40 and 1080Ti columns are of one machine each.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from bench.harness import LONG
from bench.report import Results
from engine.errors import MissingExtraError

TABLE = json.loads((Path(__file__).parent / "paper.json").read_text(encoding="utf-8"))
NOTE = (
    "(p) published, (m) measured here, (b) bound: arithmetic from data sheets, no machine reaches "
    "it. Published FPS in the DAVIS columns are of each system's own authors and GPUs; CC: "
    "constant memory cost."
)


def table(results: Results | None, bound: Callable[[str, str], float | None] | None = None) -> str:
    """The paper's table as Markdown, with the bounds of both cards and what ``results`` measured.

    ``bound(model, card)`` gives FPS; by default `card_bound`.
    """
    bound = bound or card_bound
    here = results.conditions if results else None
    machine = f"{here['cpu']}, GPU {here['gpu']}" if here else "no results yet"
    lines = [
        "| system | CC | params M | D16 J&F / J / F / FPS | D17 J&F / J / F / FPS | "
        "A40 short / long | A40 bound | 1080Ti short / long | 1080Ti bound | "
        f"here short / {LONG}× |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in TABLE:
        model = row["model"]
        limits = [bound(model, card) if model else None for card in ("A40", "GTX 1080 Ti")]
        a40, ti = (f"{x:.0f} (b)" if x else "–" for x in limits)
        told = {k: marked(row[k]) for k in ("parameters", "davis16", "davis17", "a40", "gtx1080ti")}
        constant = "yes" if row["constant_memory"] else "no"
        lines.append(
            f"| {row['name']} | {constant} | {told['parameters']} | {told['davis16']} | "
            f"{told['davis17']} | {told['a40']} | {a40} | {told['gtx1080ti']} | {ti} | "
            f"{ours(model, results)} |"
        )
    lines += ["", NOTE, f"Here: {machine}; the fastest backend, finite memory, one object."]
    return "\n".join(lines)


def marked(value: object) -> str:
    """A published cell: numbers joined by " / " and the mark, "–" for what was not published."""
    if value is None:
        return "–"
    parts = value if isinstance(value, list) else (value,)
    return " / ".join("–" if part is None else str(part) for part in parts) + " (p)"


def ours(model: str | None, results: Results | None) -> str:
    """FPS measured here on the short clip and late in a long one, at the largest size."""
    rows = [
        r
        for r in (results.measured("short") if results else [])
        if r["model"] == model and r["memory"] == "finite" and r["objects"] == 1
    ]
    if not rows or results is None:
        return "–"
    row = max(rows, key=lambda r: (r["size"], r["fps"]))
    late = results.find(row, clip="long") or results.find(row, clip=f"prefilled {LONG}x")
    note = ", random weights" if row.get("random_weights") else ""
    fps = f"{row['fps']:.1f} / " + (f"{late['fps']:.1f}" if late else "–")
    return f"{fps} (m; {row['backend']}, {row['width']}×{row['height']}{note})"


def card_bound(model: str, card: str) -> float | None:
    """The FPS bound of the layer report in fp16 at 480×864, one object; None without its extra."""
    from bench.roofline import analysis

    try:
        bound: float = analysis(model, precision="fp16")["total"]["bound_fps"][card]
    except MissingExtraError:
        return None
    return bound
