"""Whether this CPU sums products of 8-bit numbers without overflow."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def why_no_int8() -> str:
    """Why ``cpu-int8`` would give wrong masks here; an empty text means that it would not.

    x86-64 CPUs without the VNNI instructions sum pairs of 8-bit products in 16 bits, which overflow
    (ONNX Runtime's documentation of quantization calls it saturation). Others, such as ARM's, do
    not.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "x86", "i686"):
        return ""
    try:
        flags = CPUINFO.read_text()
    except OSError:
        return "only Linux tells whether an x86 CPU has VNNI; use the backend cpu"
    if "avx512_vnni" in flags or "avx_vnni" in flags:
        return ""
    return (
        "this CPU has no VNNI instructions, without which 8-bit sums overflow; use the backend cpu"
    )
