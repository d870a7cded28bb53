"""What a compiled kernel needs of a multiprocessor, read from its machine code. No GPU needed.

``cuobjdump`` and ``nvdisasm`` come with Triton. A cubin's own figures are exact; how many blocks
fit on a multiprocessor follows from them by NVIDIA's occupancy rules (``cuda_occupancy.h``).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kernels.tiles import SHARED_LIMIT

#: Tensor-core instructions: Turing to Ada and sm_120 · Hopper · sm_100.
_TENSOR = re.compile(r"\b(?:HMMA|HGMMA|UTCHMMA)\b")
_LOAD = re.compile(r"\b(?:LDG|LDGSTS)\.[A-Z0-9_.]+")

# Per multiprocessor: warps, blocks, bytes of shared memory.
_LIMITS = {
    "sm_75": (32, 16, 65536),
    "sm_80": (64, 32, 167936),
    "sm_86": (48, 16, 102400),
    "sm_87": (48, 16, 167936),
    "sm_89": (48, 24, 102400),
    "sm_90": (64, 32, 233472),
    "sm_100": (64, 32, 233472),
    "sm_120": (48, 24, 102400),
}
_REGISTERS = 65536  # per multiprocessor, handed out to warps in pieces of 256


@dataclass(frozen=True)
class Resources:
    """Counts of instructions are static: how often each appears in the code, not how often it runs.

    spills: bytes of local memory a thread (stack included); fp32_fma: FFMA instructions;
    wide_loads of loads: global loads of 16 bytes a thread among all.
    """

    registers: int
    spills: int
    shared: int
    tensor_core: int
    fp32_fma: int
    loads: int
    wide_loads: int
    resident: int
    occupancy: float


def inspect(cubin: bytes, arch: str, warps: int, dynamic_shared: int) -> Resources:
    """Read the resources of the one kernel in ``cubin``, launched with ``warps`` a block."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = _tool("cuobjdump", "-res-usage", str(file))
        code = _tool("nvdisasm", "-c", str(file))
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage printed no resource line:\n{usage}")
    registers, stack, static_shared, local = (int(x) for x in found.groups())
    if int(arch[3:]) >= 90 and static_shared >= _reserved(arch):
        static_shared -= _reserved(arch)  # from Hopper on, SHARED counts the driver's part too
    shared = static_shared + dynamic_shared
    loads = _LOAD.findall(code)
    resident = resident_blocks(arch, registers, shared, warps)
    return Resources(
        registers=registers,
        spills=stack + local,
        shared=shared,
        tensor_core=len(_TENSOR.findall(code)),
        fp32_fma=len(re.findall(r"\bFFMA2?\b", code)),
        loads=len(loads),
        wide_loads=sum(".128" in load for load in loads),
        resident=resident,
        occupancy=round(resident * warps / _LIMITS[arch][0], 3),
    )


def resident_blocks(arch: str, registers: int, shared: int, warps: int) -> int:
    """Blocks that fit on one multiprocessor at once; 0 if one block alone is too large.

    >>> resident_blocks("sm_86", registers=168, shared=24704, warps=4)
    3
    """
    max_warps, max_blocks, max_shared = _LIMITS[arch]
    if shared > SHARED_LIMIT[arch]:
        return 0
    # Registers are handed out per warp, and each of the four schedulers has a quarter of them.
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = _REGISTERS // 4 // per_warp * 4 // warps
    granule = 256 if arch == "sm_75" else 128
    taken = -(-(shared + _reserved(arch)) // granule) * granule
    by_shared = max_shared // taken if taken else max_blocks
    return min(max_warps // warps, max_blocks, by_registers, by_shared)


def _reserved(arch: str) -> int:
    """Bytes of shared memory that the driver keeps for itself in each block: since Ampere."""
    return 0 if arch == "sm_75" else 1024


def _tool(name: str, *arguments: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    done = subprocess.run([str(tool), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed ({done.returncode}): {done.stderr.strip()}")
    return done.stdout
