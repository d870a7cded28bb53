"""The memory's slots on the device: keys [S, N, Ck] and values [S, K, N, Cv], each in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.runtime.gpu.driver import Device, Scope, Stream


@dataclass(frozen=True)
class PoolShape:
    """The pool's sizes. slots: S. objects: K of the bucket, used or not. tokens: N."""

    slots: int
    objects: int
    tokens: int
    key_dim: int
    value_dim: int
    dtype: np.dtype[Any]

    @property
    def key_bytes(self) -> int:
        """Bytes of one slot's key [N, Ck]."""
        return self.tokens * self.key_dim * self.dtype.itemsize

    @property
    def column_bytes(self) -> int:
        """Bytes of one object's value in one slot [N, Cv]."""
        return self.tokens * self.value_dim * self.dtype.itemsize

    @property
    def value_bytes(self) -> int:
        """Bytes of one slot's values [K, N, Cv]."""
        return self.objects * self.column_bytes


class Pool:
    """The slots on the device, zeros at first. ``stream`` orders the work on them."""

    def __init__(self, device: Device, shape: PoolShape, stream: Stream) -> None:
        self.shape, self.stream = shape, stream
        self._scope = Scope(device)
        try:
            sizes = shape.slots * shape.key_bytes, shape.slots * shape.value_bytes
            self.keys = self._scope.memory(sizes[0], f"keys of {shape.slots} slots")
            self.values = self._scope.memory(
                sizes[1], f"values of {shape.slots} slots and {shape.objects} objects"
            )
        except BaseException:
            self._scope.close()
            raise
        stream.clear(self.keys, sizes[0])
        stream.clear(self.values, sizes[1])

    def key(self, slot: int) -> int:
        """The address of a slot's key."""
        return self.keys + slot * self.shape.key_bytes

    def value(self, slot: int, column: int = 0) -> int:
        """The address of a column in a slot's values; those after it follow."""
        return self.values + slot * self.shape.value_bytes + column * self.shape.column_bytes

    def copy(self, source: int, target: int) -> None:
        """Copy one slot to another."""
        self.stream.copy(self.key(target), self.key(source), self.shape.key_bytes)
        self.stream.copy(self.value(target), self.value(source), self.shape.value_bytes)

    def take(self, old: Pool, columns: Sequence[int]) -> None:
        """Copy the slots that both pools have; column i is the old ``columns[i]``, −1: left."""
        kept = min(self.shape.slots, old.shape.slots)
        self.stream.copy(self.keys, old.keys, kept * self.shape.key_bytes)
        for slot in range(kept):
            for new, column in enumerate(columns):
                if column >= 0:
                    source, size = old.value(slot, column), self.shape.column_bytes
                    self.stream.copy(self.value(slot, new), source, size)

    def clear_columns(self, columns: Sequence[int]) -> None:
        """Set columns to zero in every slot."""
        for slot in range(self.shape.slots):
            for column in columns:
                self.stream.clear(self.value(slot, column), self.shape.column_bytes)

    def read(self, objects: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Copy the keys and the first ``objects`` values to the host, in fp32; waits for them."""
        s = self.shape
        keys = self._fetch(self.keys, (s.slots, s.tokens, s.key_dim))
        values = self._fetch(self.values, (s.slots, s.objects, s.tokens, s.value_dim))
        return keys.astype(np.float32), values[:, :objects].astype(np.float32)

    def write(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Fill the first slots and columns from fp32 arrays; waits until the copy is done."""
        count, objects = values.shape[:2]
        whole = np.zeros((count, self.shape.objects, *values.shape[2:]), self.shape.dtype)
        whole[:, :objects] = values
        self._send(self.keys, keys.astype(self.shape.dtype))
        self._send(self.values, whole)

    def _fetch(self, address: int, shape: tuple[int, ...]) -> NDArray[Any]:
        return fetch(self.stream, address, shape, self.shape.dtype)

    def _send(self, address: int, data: NDArray[Any]) -> None:
        scope = Scope(self.stream.device)
        try:
            staging = scope.pinned(data.nbytes, "a saved memory")
            staging[:] = data.reshape(-1).view(np.uint8)
            self.stream.upload(address, staging)
            self.stream.synchronize()
        finally:
            scope.close()

    def close(self) -> None:
        """Release the memory; nothing on the device may still use it."""
        self._scope.close()


def fetch(
    stream: Stream, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Copy an array from the device to the host; waits for all work on ``stream``."""
    scope = Scope(stream.device)
    try:
        size = int(np.prod(shape)) * dtype.itemsize
        staging = scope.pinned(size, "a copy of device memory")
        stream.download(staging, address)
        stream.synchronize()
        return staging.view(dtype).reshape(shape).copy()
    finally:
        scope.close()
