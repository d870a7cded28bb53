"""What each object should read from the memory, told in frames instead of slots."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from engine.memory import EVERY


class Model:
    """The frames that stay for each object, and the last one in which it was seen."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.frame = 0
        self.pool: dict[int, int] = {}  # slot → the frame that it holds
        self.kept: dict[int, list[int]] = {}  # id → frames that stay
        self.seen: dict[int, int] = {}  # id → the last frame in which it was seen

    def frames_of(self, label: int) -> list[int]:
        frames = [*self.kept[label], self.seen[label]]
        return sorted(set(frames)) if self.policy == "infinite" else frames

    def write(self, ids: Iterable[int], given_ids: Collection[int], lost: Collection[int]) -> None:
        self.frame += 1
        for label in ids:
            if label in given_ids and self.policy == "finite":
                self.kept[label] = []
            kept = self.kept.setdefault(label, [])
            due = self.policy == "infinite" and (self.frame - 1) % EVERY == 0
            if label in given_ids or (due and label not in lost):
                kept.append(self.frame)
            if label not in lost:
                self.seen[label] = self.frame

    def remove(self, label: int) -> None:
        del self.kept[label], self.seen[label]
