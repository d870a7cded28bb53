"""What the memory read must cost at least: ``python -m kernels.memory_read.roofline``.

Arithmetic from data sheets, not measurements: no kernel reaches these times.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from kernels.cards import CARDS, Card

ELEMENT = {"fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Work:
    """Counts for N queries, R slots of N positions, K objects."""

    flops: int
    exponentials: int
    fused_bytes: int
    eager_bytes: int


def count(
    dtype: str, positions: int, key_dim: int, value_dim: int, objects: int, reads: int
) -> Work:
    """FLOPs and bytes that one memory read needs at least, if all objects read the same slots.

    Fused, each tensor crosses the memory bus once, and the objects share one affinity. Eager
    (product, softmax, product), each object's [N, R·N] is written by the first product, read and
    written by the softmax, read by the second.
    """
    memory = reads * positions
    affinity = positions * memory
    once = positions * key_dim + memory * key_dim + objects * (memory + positions) * value_dim
    return Work(
        flops=2 * affinity * (key_dim + objects * value_dim),
        exponentials=affinity,
        fused_bytes=once * ELEMENT[dtype],
        eager_bytes=(once + 4 * objects * affinity) * ELEMENT[dtype],
    )


def bounds(card: Card, dtype: str, work: Work) -> dict[str, float]:
    """Lower bounds in seconds: of the products, the exponentials, the fused and eager traffic."""
    return {
        "products": work.flops / card.flops(dtype),
        "exponentials": work.exponentials / card.exponentials,
        "fused traffic": work.fused_bytes / card.bandwidth,
        "eager traffic": work.eager_bytes / card.bandwidth,
    }


def table(positions: int = 1620, objects: int = 1, reads: int = 2) -> str:
    """The README's table, in microseconds: 480×864, Ck = Cv = 64."""
    lines = [
        "| card, dtype | products | exponentials | fused traffic | bound | eager traffic |",
        "|---|---|---|---|---|---|",
    ]
    for card in CARDS:
        for dtype in card.precisions:
            b = bounds(card, dtype, count(dtype, positions, 64, 64, objects, reads))
            eager = b.pop("eager traffic")
            shown = (*b.values(), max(b.values()), eager)
            row = " | ".join(f"{1e6 * x:.1f}" for x in shown)
            lines.append(f"| {card.name}, {dtype} | {row} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print("Lower bounds by arithmetic, in microseconds; nothing here was measured.\n")
    sys.stdout.write(table() + "\n")
