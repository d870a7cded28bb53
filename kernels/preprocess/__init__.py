"""Any frame → the network's input: resize, normalise, pad."""

from kernels.preprocess.api import preprocess

__all__ = ["preprocess"]
