"""Space-time memory read: softmax affinity between a frame and its memory, applied to values."""

from kernels.memory_read.api import memory_read

__all__ = ["memory_read"]
