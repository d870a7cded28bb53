"""Two runs side by side: which differences are more than noise."""

from __future__ import annotations

from bench.report import Results
from bench.timing import ratio_interval

CAUTION = (
    "Intervals are 95 % bootstrap ones and cover the noise within each run. They do not cover what "
    "changed between the runs: compare in one run where you can."
)


def table(a: Results, b: Results) -> str:
    """B's speed over A's for every row that both have, and the rows that one lacks."""
    lines = ["| row | FPS of A | FPS of B | B over A | |", "|---|---|---|---|---|"]
    for row in a.measured():
        other = b.find(row)
        if other is None:
            continue
        ratio, low, high = ratio_interval(other["times_ms"], row["times_ms"], paired=False)
        word = "faster" if low > 1 else "slower" if high < 1 else "noise"
        lines.append(
            f"| {title(row)} | {row['fps']:.2f} | {other['fps']:.2f} | "
            f"{ratio:.3f} [{low:.3f}, {high:.3f}] | {word} |"
        )
    for mine, theirs, name in ((a, b, "A"), (b, a, "B")):
        lines += [
            f"| {title(r)} | only in {name} | | | |" for r in mine.measured() if not theirs.find(r)
        ]
    lines += ["", CAUTION]
    for key in sorted(a.conditions.keys() | b.conditions.keys()):
        old, new = a.conditions.get(key), b.conditions.get(key)
        if old != new and key != "date":
            lines.append(f"{key}: {old} → {new}")
    return "\n".join(lines)


def title(row: dict[str, object]) -> str:
    """A row's name."""
    names = ("model", "backend", "memory", "clip", "objects", "size")
    return " ".join(str(row[name]) for name in names)
