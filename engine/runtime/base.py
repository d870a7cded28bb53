"""What the frame loop asks of a backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.geometry import Geometry


@dataclass(frozen=True)
class StepInput:
    """One frame's worth of input, K objects.

    frame:  uint8 [H0, W0, 3], RGB at the source's resolution: NumPy, or for a backend that is
        ``on_gpu`` any array on the GPU (DLPack or ``__cuda_array_interface__``), contiguous.
    slots:  int32 [K, R], the memory slots that each object reads, −1 for none; R may change.
    labels: uint8 [K+1], what to write into the mask: 0, then the objects' ids.
    write:  the slot that takes this frame's key and values; never one of ``slots``.
    given:  fp32 [K, H, W] in 0…1, or None if no mask is given.
    use_given: bool [K], the objects whose mask is given.
    on_gpu: leave the mask on the GPU.
    """

    frame: Any
    slots: NDArray[np.int32]
    labels: NDArray[np.uint8]
    write: int
    given: NDArray[np.float32] | None
    use_given: NDArray[np.bool_]
    on_gpu: bool = False


class Backend(Protocol):
    """Runs the network and holds the memory's keys [S, N, Ck] and values [S, K, N, Cv]."""

    name: str
    on_gpu: bool  # whether frames and masks may lie on the GPU

    def open(self, geometry: Geometry) -> None:
        """Begin a video: an empty memory, no objects."""

    def arrange(self, columns: Sequence[int], slots: int) -> None:
        """Make the pool ``slots`` slots by ``len(columns)`` objects.

        Column i takes over the old column ``columns[i]``, or zeros if that is −1; slots that are in
        both keep their content.
        """

    def expect(self, frame: Any) -> None:
        """Announce the frame of the step after the next, so that it may be uploaded early."""

    def step(self, task: StepInput) -> Any:
        """Segment a frame, write it to its slot and return the mask, uint8 [H0, W0]."""

    def copy(self, source: int, target: int) -> None:
        """Copy one slot's key and values to another."""

    def probabilities(self) -> NDArray[np.float32]:
        """Soft masks of the last step, fp32 [K+1, H, W], background first."""

    def scores(self) -> NDArray[np.float32]:
        """Mean of p and mean of p² for each object after the last step, fp32 [K, 2].

        p is the object's soft mask at the network's padded size [H, W]; the means are over its
        pixels. See `engine.model.scores`.
        """

    def export_memory(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Copies of the keys [S, N, Ck] and values [S, K, N, Cv]."""

    def import_memory(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Replace the memory by what :meth:`export_memory` gave."""

    def close(self) -> None:
        """Release everything; closing twice is fine."""


class GpuBackend(Backend, Protocol):
    """A backend that is ``on_gpu``."""

    def to_gpu(self, mask: NDArray[np.uint8]) -> Any:
        """Copy a mask [H0, W0] to the GPU, into an array like those that ``step`` leaves there."""
