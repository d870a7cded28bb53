"""Tell from the soft masks alone which objects a frame lost.

An object's confidence is Σp²/Σp over all pixels: the mean of p weighted by p itself, 1 for a mask
of zeros and ones. How high it is in a good frame depends on the object – outlines and small parts
are soft – so each object is compared with itself: it is lost when its confidence falls well below
its usual one. A mask that is wrong but sure of itself is not noticed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LostRule:
    """When an object counts as lost.

    ratio: below this share of its usual confidence.
    floor: below this confidence, whatever is usual.
    full: never with a Σp above this share of the frame, which leaves no other place for it.
    area: with a Σp below so many pixels of the network's resolution.
    seen_rate: how fast the usual confidence follows the frame's while the object is seen.
    lost_rate: likewise while it is lost: an object that stays as soft as that is so by nature, and
        is followed again after a second or so.
    """

    ratio: float = 0.93
    floor: float = 0.6
    full: float = 0.7
    area: float = 16.0
    seen_rate: float = 0.1
    lost_rate: float = 0.02


class LostWatch:
    """Judges the objects of one video, frame by frame."""

    def __init__(self, rule: LostRule | None = None) -> None:
        self.rule = rule or LostRule()
        self.usual: dict[int, float] = {}  # id → usual confidence
        self.confidence: dict[int, float] = {}  # id → that in the last frame

    def lost(
        self,
        ids: Sequence[int],
        scores: NDArray[np.float32],
        pixels: int,
        given: Collection[int] = (),
    ) -> set[int]:
        """Return the ids that a frame lost, judged by their scores [K, 2] (`engine.model.scores`).

        pixels: how many pixels the scores are means over. given: the ids whose mask was given in
        this frame; they are not lost, and their usual confidence is learnt anew.
        """
        rule, lost = self.rule, set()
        self.confidence = {}
        for label, (mean, square) in zip(ids, scores.tolist(), strict=True):
            confidence = square / mean if mean > 0 else 0.0
            self.confidence[label] = confidence
            if label in given:
                self.usual.pop(label, None)
                continue
            usual = self.usual.get(label, confidence)
            gone = confidence < max(rule.floor, rule.ratio * usual) or mean * pixels < rule.area
            gone = gone and mean < rule.full
            if gone:
                lost.add(label)
            if confidence >= rule.floor:
                rate = rule.lost_rate if gone else rule.seen_rate
                self.usual[label] = usual + rate * (confidence - usual)
        return lost

    def remove(self, label: int) -> None:
        """Forget an object."""
        self.usual.pop(label, None)
        self.confidence.pop(label, None)

    def state(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Return the usual confidences of ``ids`` for :meth:`restore`; NaN = none yet."""
        return np.array([self.usual.get(label, np.nan) for label in ids])

    def restore(self, ids: Sequence[int], state: NDArray[np.float64]) -> None:
        """Go on where :meth:`state` was taken."""
        pairs = zip(ids, state.tolist(), strict=True)
        self.usual = {label: usual for label, usual in pairs if not np.isnan(usual)}
