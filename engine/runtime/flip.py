"""Test-time augmentation: average the network's results on each frame and on its mirror image.

A backend around two others. Each view has its own memory of what it saw. Costs twice the time and
memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.geometry import Geometry, pad_planes, probabilities_to_source
from engine.runtime.base import Backend, StepInput

F32 = NDArray[np.float32]


class FlipBackend:
    """See :class:`engine.runtime.base.Backend`. Takes over two backends of the same model.

    Its memory is theirs, side by side in the last axis: keys [S, N, 2·Ck], values [S, K, N, 2·Cv].
    """

    on_gpu = False

    def __init__(self, straight: Backend, mirrored: Backend) -> None:
        self.name = straight.name
        self.views = straight, mirrored

    def open(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.soft = np.zeros((1, *geometry.padded), np.float32)
        for view in self.views:
            view.open(geometry)

    def arrange(self, columns: Sequence[int], slots: int) -> None:
        for view in self.views:
            view.arrange(columns, slots)

    def expect(self, frame: Any) -> None:
        """Do nothing: each view would need its own copy of the frame."""

    def step(self, task: StepInput) -> NDArray[np.uint8]:
        straight, mirrored = self.views
        straight.step(task)
        given = None if task.given is None else self.mirror(task.given)
        frame = np.ascontiguousarray(task.frame[:, ::-1])
        mirrored.step(replace(task, frame=frame, given=given))
        self.soft = np.float32(0.5) * (
            straight.probabilities() + self.mirror(mirrored.probabilities())
        )
        best = probabilities_to_source(self.soft, self.geometry).argmax(0)
        mask: NDArray[np.uint8] = task.labels[best]
        return mask

    def mirror(self, planes: F32) -> F32:
        """Mirror [P, H, W] about the middle of the image, whose padding stays at the right."""
        h, w = self.geometry.network
        return pad_planes(planes[:, :h, :w][:, :, ::-1], self.geometry)

    def copy(self, source: int, target: int) -> None:
        for view in self.views:
            view.copy(source, target)

    def probabilities(self) -> F32:
        return self.soft

    def scores(self) -> F32:
        p = self.soft[1:]
        return np.stack([p.mean((1, 2)), np.square(p).mean((1, 2))], 1)

    def export_memory(self) -> tuple[F32, F32]:
        keys, values = zip(*(view.export_memory() for view in self.views), strict=True)
        return np.concatenate(keys, -1), np.concatenate(values, -1)

    def import_memory(self, keys: F32, values: F32) -> None:
        halves = zip(np.split(keys, 2, -1), np.split(values, 2, -1), strict=True)
        for view, (k, v) in zip(self.views, halves, strict=True):
            view.import_memory(np.ascontiguousarray(k), np.ascontiguousarray(v))

    def close(self) -> None:
        for view in self.views:
            view.close()
