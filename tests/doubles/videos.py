"""Small videos and masks, and frames that lie on the stand-in GPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

import engine.runtime.cuda as cuda_source
from doubles.rig import Rig
from engine.segmenter import Segmenter

SIZE = (64, 96)


def video(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]


def squares(*ids: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A mask with a square for each id, side by side."""
    mask = np.zeros(size, np.uint8)
    for i in ids:
        mask[10:30, 12 * (i % 8) : 12 * (i % 8) + 9] = i
    return mask


def load(rig: Rig, source: ModuleType = cuda_source, **options: Any) -> Segmenter:
    return Segmenter(source.CudaBackend(rig.library()), "m", "h", **options)


class OnGpu:
    """A frame on the stand-in GPU that another library owns, by the CUDA array interface.

    Its content is written by work on that library's own stream.
    """

    def __init__(self, rig: Rig, frame: np.ndarray) -> None:
        self.machine = rig.machine
        self.address = rig.machine.allocate(frame.nbytes, "device")
        self.stream = rig.machine.handle()
        rig.machine.streams[self.stream] = []
        self.shape = frame.shape

        def produce() -> None:
            if self.address in self.machine.blocks:
                self.machine.array(self.address, frame.shape, np.uint8)[:] = frame

        rig.machine.put(self.stream, "produce", produce)
        self.__cuda_array_interface__ = {
            "shape": frame.shape,
            "typestr": "|u1",
            "data": (self.address, False),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }

    def free(self) -> None:
        self.machine.finish_stream(self.stream)
        del self.machine.streams[self.stream]
        self.machine.free(self.address, "device")
