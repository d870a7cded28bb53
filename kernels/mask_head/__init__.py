"""Probabilities at the network's resolution → object ids at the source's."""

from kernels.mask_head.api import mask_head

__all__ = ["mask_head"]
