"""Run-length encoding of masks: COCO's, down the columns, and CVAT's, along the rows of the box."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]


def run_lengths(bits: Bits) -> list[int]:
    """Lengths of the runs of equal values in ``bits`` [n], of False first (0 if it starts True)."""
    changes = np.flatnonzero(bits[1:] != bits[:-1]) + 1
    edges = np.concatenate([[0], changes, [len(bits)]])
    counts: list[int] = np.diff(edges).tolist()
    return [0, *counts] if bits.size and bits[0] else counts


def coco_counts(crop: Bits, left: int, top: int, size: tuple[int, int]) -> str:
    """COCO's compressed run lengths of a mask, as in pycocotools.

    crop: bool [h, w], the mask inside its box, whose corner is (left, top). size: (H, W) of the
    image. The runs go down the image's columns.
    """
    height, width = size
    columns = np.zeros((crop.shape[1], height), bool)
    columns[:, top : top + crop.shape[0]] = crop.T
    counts = run_lengths(columns.ravel()) or [0]
    counts[0] += left * height
    rest = (width - left - crop.shape[1]) * height
    if len(counts) % 2:
        counts[-1] += rest
    elif rest:
        counts.append(rest)
    return compress(counts)


def compress(counts: list[int]) -> str:
    """COCO's text for run lengths: from the fourth on differences to the last but one.

    Each number takes as many characters as it needs, five bits and a "more follows" bit in each,
    from the lowest up, with the sign in the last.
    """
    text = bytearray()
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            text.append(48 + (bits | more << 5))
    return text.decode("ascii")
