"""Peaks of the GPUs for which reports and benchmarks state bounds. Nothing here was measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """What a card can do at most, at its boost clock.

    Sources, NVIDIA's: data sheets of the A40, A100 80GB SXM and H100 SXM; architecture white papers
    of GA102 (RTX 3090, founders edition) and Ada (RTX 4090); product page of the GTX 1080 Ti.
    Matrix rates are dense: the sheets' figures "with sparsity" are twice as high.

    name: as NVIDIA writes it. arch: compute capability, such as ``"sm_86"``.
    fp32_tflops: 10¹² FLOP/s of true fp32, an FMA counting two; tensor cores (TF32) not used.
    fp16_tensor_tflops: 10¹² FLOP/s of fp16 products summed in fp32; None without tensor cores.
    bandwidth_gb_s: 10⁹ bytes/s of device memory. sms: multiprocessors in use.
    """

    name: str
    arch: str
    fp32_tflops: float
    fp16_tensor_tflops: float | None
    bandwidth_gb_s: float
    sms: int

    def peak_tflops(self, precision: str) -> float:
        """Highest rate for ``fp32`` or ``fp16`` tensors; raises ValueError for another precision.

        Without tensor cores fp16 tensors are computed in fp32, which is the faster of the two on
        the one such card here (the GTX 1080 Ti's fp16 has 1/64 of the rate of its fp32).
        """
        if precision not in ("fp16", "fp32"):
            raise ValueError(f"no peak is known for precision '{precision}'; use fp16 or fp32")
        if precision == "fp16" and self.fp16_tensor_tflops is not None:
            return self.fp16_tensor_tflops
        return self.fp32_tflops


A40 = GPU("A40", "sm_86", 37.4, 149.7, 696.0, 84)
GTX_1080_TI = GPU("GTX 1080 Ti", "sm_61", 11.3, None, 484.0, 28)
RTX_3090 = GPU("RTX 3090", "sm_86", 35.6, 71.0, 936.0, 82)
RTX_4090 = GPU("RTX 4090", "sm_89", 82.6, 165.2, 1008.0, 128)
A100 = GPU("A100", "sm_80", 19.5, 312.0, 2039.0, 108)
H100 = GPU("H100", "sm_90", 66.9, 989.4, 3350.0, 132)

GPUS = {gpu.name: gpu for gpu in (A40, GTX_1080_TI, RTX_3090, RTX_4090, A100, H100)}
