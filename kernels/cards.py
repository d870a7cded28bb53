"""Peaks of the GPUs for which bounds are stated. Nothing here was measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """What a GPU, or another machine, can do at most, at its boost clock.

    name: as NVIDIA writes it; all of ``words`` stand in the name by which the driver knows it.
    fp32: FLOP/s of true fp32, a multiply-add counting two; TF32 is not used. fp16: FLOP/s of fp16
    products summed in fp32, dense; None without tensor cores. bandwidth: bytes/s of device memory.
    exponentials: of fp32, a second.
    """

    name: str
    words: tuple[str, ...]
    fp32: float
    fp16: float | None
    bandwidth: float
    exponentials: float

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that differ in speed."""
        return ("fp32",) if self.fp16 is None else ("fp16", "fp32")

    def flops(self, precision: str) -> float:
        """FLOP/s for ``fp32`` or ``fp16`` tensors; raises ValueError for another precision.

        Without tensor cores fp16 tensors are computed in fp32, the faster of the two on the one
        such card here (the GTX 1080 Ti's fp16 has 1/64 of the rate of its fp32).
        """
        if precision not in ("fp16", "fp32"):
            raise ValueError(f"no peak is known for precision '{precision}'; use fp16 or fp32")
        return self.fp16 if precision == "fp16" and self.fp16 is not None else self.fp32


# NVIDIA's data sheets of the A40 and the H100 SXM, its white paper on Ada (RTX 4090), its product
# page of the GTX 1080 Ti. Exponentials: multiprocessors × special functions a clock (CUDA C++
# Programming Guide, "Arithmetic instructions") × boost clock.
A40 = Card("A40", ("A40",), 37.4e12, 149.7e12, 696e9, 84 * 16 * 1.74e9)
GTX_1080_TI = Card("GTX 1080 Ti", ("1080", "Ti"), 11.3e12, None, 484e9, 28 * 32 * 1.58e9)
RTX_4090 = Card("RTX 4090", ("4090",), 82.6e12, 165.2e12, 1008e9, 128 * 16 * 2.52e9)
H100 = Card("H100 SXM", ("H100", "HBM3"), 66.9e12, 989.4e12, 3350e9, 132 * 16 * 1.83e9)

CARDS = (A40, GTX_1080_TI, RTX_4090, H100)
