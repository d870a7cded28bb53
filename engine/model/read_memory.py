"""Stage 2, ``read_memory``: what the memory says of each position; the op itself is a kernel."""

from __future__ import annotations

from torch import Tensor

from kernels.memory_read import memory_read


def read_memory(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> Tensor:
    """Match query [N, Ck] against keys [S, N, Ck]; read values [S, K, N, Cv] → [K, N, Cv].

    ``slots`` int [K, R] names the slots that each object reads, −1 for none.
    """
    return memory_read(query, keys, values, slots)


def tokens(x: Tensor) -> Tensor:
    """[B, C, h, w] → [B, h·w, C], the channels-last layout at both ends of the memory read."""
    return x.flatten(2).transpose(1, 2)


def image_grid(x: Tensor, h: int, w: int) -> Tensor:
    """[B, h·w, C] → [B, C, h, w], the inverse of :func:`tokens`."""
    return x.transpose(1, 2).reshape(*x.shape[::2], h, w)
