"""The finite memory: which slots there are, and which of them each object reads.

Only the book-keeping; keys and values lie with the backend. Slots 0 and 1 hold the most recent
frame by turns: while one is read, the other is written. Slots from 2 on are anchors, frames in
which the caller gave masks. Each object reads its own anchor and the most recent frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RECENT = 2  # slots that take turns
NONE = -1


class Memory:
    """Slot table of one video. ``ids`` are the caller's, in the order of the backend's columns."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.anchors: dict[int, int] = {}  # id → slot
        self.last = 0  # the slot of the most recent frame

    @property
    def write(self) -> int:
        """The slot that the frame being segmented is written to."""
        return 1 - self.last

    @property
    def slots(self) -> int:
        """How many slots the pool must have."""
        return max(self.anchors.values(), default=RECENT - 1) + 1

    def table(self) -> NDArray[np.int32]:
        """The slots that each object reads, int32 [K, 2]: anchor and last; −1 before its first."""
        rows = [
            (self.anchors[i], self.last) if i in self.anchors else (NONE, NONE) for i in self.ids
        ]
        return np.array(rows, np.int32).reshape(-1, 2)

    def add(self, ids: Sequence[int]) -> list[int]:
        """Append objects; returns the old column of each column, −1 for new ones."""
        columns = [*range(len(self.ids)), *[NONE] * len(ids)]
        self.ids.extend(ids)
        return columns

    def remove(self, label: int) -> list[int]:
        """Forget an object; returns the old column of each column that is left."""
        gone = self.ids.index(label)
        self.ids.remove(label)
        self.anchors.pop(label, None)
        return [c for c in range(len(self.ids) + 1) if c != gone]

    def turn(self) -> None:
        """The frame was written: it is now the most recent one."""
        self.last = self.write

    def anchor(self, ids: Sequence[int]) -> int:
        """Give ``ids`` a new anchor that they share; returns its slot, the lowest free one."""
        for label in ids:
            self.anchors.pop(label, None)
        taken = set(self.anchors.values())
        slot = RECENT
        while slot in taken:
            slot += 1
        self.anchors.update(dict.fromkeys(ids, slot))
        return slot
