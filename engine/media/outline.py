"""The outline of a mask as one polygon along the edges of its pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]
Points = NDArray[np.int64]

# (Δx, Δy) of a step along a pixel's edge; the inside lies to the right of each.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def loops(mask: Bits) -> list[Points]:
    """The closed borders of ``mask`` [H, W]: corners (x, y) [n, 2] where the direction changes.

    Pixel (x, y) covers [x, x + 1) × [y, y + 1). Outer borders go clockwise as seen on a screen,
    those of holes the other way. Pixels that touch only at a corner have separate borders.
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    around = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    starts = ((0, 0), (1, 0), (1, 1), (0, 1))  # of the edge at the top, right, bottom and left
    edges: set[tuple[int, int, int]] = set()  # (x, y, direction), not yet walked
    for direction, (beyond, (dx, dy)) in enumerate(zip(around, starts, strict=True)):
        y, x = np.nonzero(inside & ~beyond)
        edges.update(zip((x + dx).tolist(), (y + dy).tolist(), [direction] * len(x), strict=True))
    found = []
    for first in sorted(edges, key=lambda edge: (edge[1], edge[0], edge[2])):
        if first not in edges:
            continue
        corners: list[tuple[int, int]] = []
        u, v, direction = first
        while (u, v, direction) in edges:
            edges.remove((u, v, direction))
            u, v = u + _STEPS[direction][0], v + _STEPS[direction][1]
            # Right before straight before left: where two borders meet, each keeps to its pixel.
            right, left = (direction + 1) % 4, (direction + 3) % 4
            turn = next((d for d in (right, direction, left) if (u, v, d) in edges), first[2])
            if turn != direction:
                corners.append((u, v))
            direction = turn
        found.append(np.array(corners, np.int64))
    return found


def polygon(mask: Bits) -> Points:
    """The whole ``mask`` [H, W] as one polygon: corners (x, y) [n, 2], the last joins the first.

    Pieces and holes are joined by bridges of no width, walked there and back between nearest
    corners, so that filling the polygon by either rule gives the mask again. Empty: [0, 2].
    """
    borders = loops(mask)
    if not borders:
        return np.zeros((0, 2), np.int64)
    joined = borders[0]
    for border in borders[1:]:
        apart = np.abs(joined[:, None] - border[None]).sum(2)
        here, there = np.unravel_index(int(apart.argmin()), apart.shape)
        around = np.roll(border, -int(there), axis=0)
        detour = np.concatenate([around, around[:1], joined[here : here + 1]])
        joined = np.insert(joined, int(here) + 1, detour, axis=0)
    return joined
