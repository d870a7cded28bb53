"""The paper's figures beside ours, each cell marked with where it comes from.

Published: Miles, Yucel, Manganelli, Saà-Garriga, "MobileVOS", CVPR 2023, tables of the poster.
The FPS in its DAVIS columns were copied from each system's own authors, on their own GPUs; only the
A40 and 1080Ti columns are of one machine each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.harness import LONG
from bench.report import Results

#: J&F, J, F, FPS; FPS as text where the paper gives no plain number.
Davis = tuple[float, float, float, float | str | None]


@dataclass(frozen=True)
class Published:
    """One system's row; ``a40`` and ``gtx1080ti``: FPS on a short and on a long (10×) clip."""

    name: str
    constant_memory: bool
    davis16: Davis | None = None
    davis17: Davis | None = None
    a40: tuple[float | str, float | str] | None = None
    gtx1080ti: tuple[float | str, float | str] | None = None
    parameters: float | None = None  # millions
    model: str = ""  # the name of our network of that kind


TABLE = (
    Published(
        "STM",
        False,
        (89.3, 88.7, 89.9, 6.3),
        (81.8, 79.2, 84.3, 10.2),
        (8.9, 4.3),
        (6.8, "out of memory"),
        38.9,
    ),
    Published("MiVOS", False, (91.0, 89.7, 92.4, 16.9)),
    Published("GSFM", False, None, None, (18.4, 4.2), (7.6, "X"), 67.0),
    Published(
        "STCN",
        False,
        (91.7, 90.4, 93.0, 26.9),
        (85.3, 82.0, 88.6, 20.2),
        (37.4, 8.3),
        (18.1, "X"),
        54.4,
    ),
    Published("BATMAN", False, (92.5, 90.7, 94.2, None), (86.2, 83.2, 89.4, None)),
    Published(
        "XMem",
        False,
        (92.0, 90.7, 93.2, 29.6),
        (87.7, 84.0, 91.4, 22.6),
        (38.6, 39.9),
        (12.6, 12.7),
        62.2,
    ),
    Published("SwiftNet", True, (90.4, 90.5, 90.3, 25.0), (81.1, 78.3, 83.9, "<25.0")),
    Published(
        "RDE-VOS",
        True,
        (91.6, 90.0, 93.2, 35.0),
        (86.1, 82.1, 90.0, 27.0),
        (32.0, 34.2),
        (14.4, 14.1),
        64.0,
    ),
    Published(
        "MobileVOS ResNet18",
        True,
        (91.4, 90.3, 92.6, 100.1),
        (85.0, 81.7, 88.3, 90.6),
        (144.7, 145.4),
        (76.0, 76.3),
        8.1,
        "mobilevos-resnet18",
    ),
    Published(
        "MobileVOS MobileNetV2",
        True,
        (90.5, 89.5, 91.5, 81.8),
        (82.2, 78.7, 85.7, 79.1),
        (99.9, 99.1),
        (61.6, 60.6),
        2.5,
        "mobilevos-mobilenetv2",
    ),
    Published(
        "MobileVOS MobileNetV2 w/o ASPP",
        True,
        (90.1, 89.0, 91.1, 86.0),
        (81.8, 78.3, 85.3, 81.3),
        (105.1, 103.4),
        (66.8, 67.4),
        1.9,
        "mobilevos-mobilenetv2-noaspp",
    ),
)
NOTE = (
    "(p) published, (m) measured here, (b) bound: arithmetic from data sheets, no machine reaches "
    "it. Published FPS in the DAVIS columns are of each system's own authors and GPUs; CC: "
    "constant memory cost."
)


def table(results: Results | None, bound: Callable[[str, str], float | None] | None = None) -> str:
    """The paper's table as Markdown, with the bounds of both cards and what ``results`` measured.

    ``bound(model, card)`` gives FPS; by default those of `bench.roofline`, in fp16 on the A40 and
    fp32 on the 1080Ti, which has no fast fp16.
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
        limits = [bound(row.model, card) if row.model else None for card in ("A40", "GTX 1080 Ti")]
        a40, ti = (f"{x:.0f} (b)" if x else "–" for x in limits)
        lines.append(
            f"| {row.name} | {'yes' if row.constant_memory else 'no'} | {marked(row.parameters)} | "
            f"{marked(row.davis16)} | {marked(row.davis17)} | {marked(row.a40)} | {a40} | "
            f"{marked(row.gtx1080ti)} | {ti} | {ours(row.model, results)} |"
        )
    lines += ["", NOTE, f"Here: {machine}; the fastest backend, finite memory, one object."]
    return "\n".join(lines)


def marked(value: object) -> str:
    """A published cell: numbers joined by " / " and the mark, "–" for what was not published."""
    if value is None:
        return "–"
    parts = value if isinstance(value, tuple) else (value,)
    return " / ".join("–" if part is None else str(part) for part in parts) + " (p)"


def ours(model: str, results: Results | None) -> str:
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
    """The FPS bound of `bench.roofline` at 480×864, one object; None if it cannot be computed."""
    from bench.roofline import Unavailable, fps_bound

    try:
        return fps_bound(model, card, "fp32" if card == "GTX 1080 Ti" else "fp16")
    except Unavailable:
        return None
