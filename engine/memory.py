"""The memory's book: which slots there are, and which of them each object reads.

This is the book-keeping only; the backend holds the keys and values. Slots 0 and 1 take turns at
holding the most recent frame: while one is read, the other is written. Slots from 2 on are copies
that stay. The policy decides what stays:

- ``finite`` (MobileVOS): of each object, the frame in which the caller gave its mask last.
- ``infinite`` (STCN): every frame in which a mask was given, and every fifth frame. It grows for
  ever and gets slower with it; it is the baseline that the finite memory is measured against.

Every object also reads the most recent frame. A lost object reads the last frame in which it was
seen instead, which is held in a slot of its own until the object is back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError

POLICIES = ("finite", "infinite")
RECENT = 2  # slots that take turns
EVERY = 5  # "infinite" keeps one frame in so many, as STCN does
NONE = -1


class Memory:
    """Slot table of one video. ``ids`` are the caller's, in the order of the backend's columns.

    Raises InputError if ``policy`` is not one of :data:`POLICIES`.
    """

    def __init__(self, policy: str = "finite") -> None:
        self.policy = check_policy(policy)
        self.ids: list[int] = []
        self.kept: dict[int, list[int]] = {}  # id → the slots that stay, in order of time
        self.held: dict[int, int] = {}  # lost id → slot of the last frame in which it was seen
        self.doubled: set[int] = set()  # ids of whose kept slots one is a copy of the last frame
        self.last = 0  # the slot of the most recent frame
        self.frames = 0  # how many frames were written

    @property
    def write(self) -> int:
        """The slot that the present frame is written to."""
        return 1 - self.last

    @property
    def used(self) -> int:
        """How many slots, counted from 0, hold something that is still needed."""
        return max(self._taken(), default=RECENT - 1) + 1

    @property
    def slots(self) -> int:
        """How many slots the pool needs: a power of two, so that it seldom changes size."""
        return max(2 * RECENT, 1 << (self.used - 1).bit_length())

    def table(self) -> NDArray[np.int32]:
        """Return the slots that each object reads, int32 [K, R]: those that stay, then the latest.

        Rows are padded with −1; before its first frame an object's row is all −1. R is 2 for the
        finite memory and grows for the infinite one.
        """
        return pad([self._row(label) for label in self.ids], 2)

    def _row(self, label: int) -> list[int]:
        if label not in self.kept:
            return []
        # One frame among several must not count twice; of two, the pair's shape matters more.
        if self.policy == "infinite" and label in self.doubled:
            return self.kept[label]
        return [*self.kept[label], self.held.get(label, self.last)]

    def add(self, ids: Sequence[int]) -> list[int]:
        """Append objects. Returns the old column of each column, −1 for new ones."""
        columns = [*range(len(self.ids)), *[NONE] * len(ids)]
        self.ids.extend(ids)
        return columns

    def remove(self, label: int) -> list[int]:
        """Forget an object. Returns the old column of each column that is left."""
        gone = self.ids.index(label)
        self.ids.remove(label)
        self.kept.pop(label, None)
        self.held.pop(label, None)
        self.doubled.discard(label)
        return [c for c in range(len(self.ids) + 1) if c != gone]

    def hold(self, lost: Iterable[int]) -> int | None:
        """Note which objects the written frame lost; call it before ``turn``.

        All other objects count as seen. Returns the slot to copy the last frame to, for objects
        that are newly lost, or None.
        """
        lost = set(lost)
        self.held = {label: slot for label, slot in self.held.items() if label in lost}
        new = lost - self.held.keys()
        if not new:
            return None
        slot = self._free()
        self.held.update(dict.fromkeys(sorted(new), slot))
        return slot

    def turn(self) -> None:
        """Make the frame that was written the most recent one."""
        self.last = self.write
        self.frames += 1
        self.doubled &= self.held.keys()

    def keep(self, given: Sequence[int] = ()) -> int | None:
        """Keep the most recent frame for the objects that need it; call it after ``turn``.

        given: the ids whose mask was given in that frame. Returns the slot to copy the frame to,
        which those objects share, or None if it need not stay.
        """
        wanted = set(given)
        if self.policy == "infinite" and self.frames % EVERY == 1:  # the 1st frame, the 6th …
            wanted |= set(self.ids) - self.held.keys()
        elif self.policy == "finite":
            for label in given:
                self.kept.pop(label, None)
        if not wanted:
            return None
        slot = self._free()
        for label in wanted:
            self.kept.setdefault(label, []).append(slot)
        self.doubled |= wanted
        return slot

    def _taken(self) -> set[int]:
        return {s for kept in self.kept.values() for s in kept} | set(self.held.values())

    def _free(self) -> int:
        """The lowest slot that is free."""
        taken = self._taken()
        return next(slot for slot in itertools.count(RECENT) if slot not in taken)

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """The book as arrays, for :meth:`load_state_dict`."""
        return {
            "ids": np.array(self.ids, np.int64),
            "kept": pad([self.kept[i] for i in self.ids], 1),
            "held": np.array([self.held.get(i, NONE) for i in self.ids], np.int32),
            "doubled": np.array([i in self.doubled for i in self.ids], np.bool_),
            "last": np.array(self.last),
            "frames": np.array(self.frames),
            "policy": np.array(self.policy),
        }

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Become the book that :meth:`state_dict` was taken of; ValueError if it is none."""
        self.policy = check_policy(str(state["policy"]))
        self.ids = [int(i) for i in state["ids"]]
        rows = zip(self.ids, state["kept"].tolist(), strict=True)
        self.kept = {i: [s for s in row if s != NONE] for i, row in rows}
        held = zip(self.ids, state["held"].tolist(), strict=True)
        self.held = {i: s for i, s in held if s != NONE}
        self.doubled = {i for i, d in zip(self.ids, state["doubled"], strict=True) if d}
        self.last, self.frames = int(state["last"]), int(state["frames"])
        slots = self._taken()
        if (
            len(set(self.ids)) < len(self.ids)
            or not all(0 < label < 256 for label in self.ids)
            or min(slots, default=RECENT) < RECENT
            or self.last not in range(RECENT)
            or self.frames < 1
        ):
            raise ValueError("it has impossible ids, slots or counts")


def pad(rows: Sequence[Sequence[int]], width: int) -> NDArray[np.int32]:
    """Rows of slots as int32 [len(rows), R], padded with −1; R is at least ``width``."""
    width = max([width, *map(len, rows)])
    table = np.full((len(rows), width), NONE, np.int32)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table


def check_policy(policy: str) -> str:
    """Return ``policy``; raise InputError if it is not one of :data:`POLICIES`."""
    if policy not in POLICIES:
        raise InputError(f"unknown memory '{policy}'; choose one of: {', '.join(POLICIES)}")
    return policy
