"""What the memory read must cost at least: ``python -m kernels.memory_read.roofline``.

Arithmetic from data sheets, not measurements: no kernel reaches these times.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """Peaks: dense matrix FLOP/s per dtype, exponentials/s, bytes/s of device memory.

    words: all stand in the name by which the driver knows the card.
    """

    name: str
    words: frozenset[str]
    flops: dict[str, float]
    exponentials: float
    bandwidth: float


#: NVIDIA's data sheets; exponentials: multiprocessors × a clock's special functions each (CUDA C++
#: Programming Guide, "Arithmetic instructions") × boost clock. The 1080Ti has no tensor cores, and
#: its fp16 is slower than its fp32; true fp32 has none on any card.
CARDS = (
    Card("A40", frozenset({"A40"}), {"fp16": 149.7e12, "fp32": 37.4e12}, 84 * 16 * 1.74e9, 696e9),
    Card("1080Ti", frozenset({"1080", "Ti"}), {"fp32": 11.3e12}, 28 * 32 * 1.58e9, 484e9),
    Card(
        "RTX 4090",
        frozenset({"4090"}),
        {"fp16": 165.2e12, "fp32": 82.6e12},
        128 * 16 * 2.52e9,
        1008e9,
    ),
    Card(
        "H100 SXM",
        frozenset({"H100", "HBM3"}),
        {"fp16": 989.4e12, "fp32": 66.9e12},
        132 * 16 * 1.83e9,
        3350e9,
    ),
)
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
        "products": work.flops / card.flops[dtype],
        "exponentials": work.exponentials / card.exponentials,
        "fused traffic": work.fused_bytes / card.bandwidth,
        "eager traffic": work.eager_bytes / card.bandwidth,
    }


def report(positions: int = 1620, objects: int = 1, reads: int = 2) -> str:
    """The README's table, in microseconds: 480×864, Ck = Cv = 64."""
    lines = [
        "| card, dtype | products | exponentials | fused traffic | bound | eager traffic |",
        "|---|---|---|---|---|---|",
    ]
    for card in CARDS:
        for dtype in card.flops:
            b = bounds(card, dtype, count(dtype, positions, 64, 64, objects, reads))
            bound = max(b["products"], b["exponentials"], b["fused traffic"])
            cells = [
                b["products"],
                b["exponentials"],
                b["fused traffic"],
                bound,
                b["eager traffic"],
            ]
            row = " | ".join(f"{1e6 * x:.1f}" for x in cells)
            lines.append(f"| {card.name}, {dtype} | {row} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print("Lower bounds by arithmetic, in microseconds; nothing here was measured.\n")
    sys.stdout.write(report() + "\n")
