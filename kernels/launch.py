"""Launch kernels of ``kernels.aot`` from Python through cuda-python: no torch, no Triton.

    kernel = launch.load(Path("build/kernels"), "memory_read-fp16-ck64-cv64-v64", (8, 6))
    kernel(stream, query=address, …, positions=1620, …)

Needs a current CUDA context. Loading is no stream operation: do it before a graph is captured.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
DEFAULT_SHARED_LIMIT = 48 * 1024
_CEIL = re.compile(r"ceil\((.+) / (\d+)\)")


def grid(rules: list[str], numbers: dict[str, int]) -> tuple[int, int, int]:
    """Evaluate a metadata's grid rules.

    >>> grid(["ceil(positions / 64)", "ceil(objects * 64 / 128)", "splits"],
    ...      {"positions": 1620, "objects": 3, "splits": 6})
    (26, 2, 6)
    """
    sides = []
    for rule in rules:
        ceiling = _CEIL.fullmatch(rule)
        product, by = (ceiling.group(1), int(ceiling.group(2))) if ceiling else (rule, 1)
        total = 1
        for factor in product.split(" * "):
            total *= int(factor) if factor.isdigit() else numbers[factor]
        sides.append(-(-total // by))
    x, y, z = sides
    return x, y, z


def find(folder: Path, name: str, capability: tuple[int, int]) -> Path:
    """The JSON of the newest code for ``name`` that runs on a compute capability."""
    built = []
    for file in folder.glob(f"{name}.sm_*.json"):
        metadata = json.loads(file.read_text())
        target = int(metadata["target"].removeprefix("sm_"))
        major, minor = divmod(target, 10)
        exact = metadata["code_for"].endswith("a")
        if major == capability[0] and (minor == capability[1] if exact else minor <= capability[1]):
            built.append((target, file))
    if not built:
        wanted = f"sm_{capability[0]}{capability[1]}"
        raise FileNotFoundError(
            f"no code for {name} on {wanted} in {folder}; run: python -m kernels.aot "
            f"--target {wanted} --out {folder}"
        )
    return max(built)[1]


@dataclass(frozen=True)
class Kernel:
    """A loaded kernel. ``metadata`` is the JSON of ``kernels.aot``."""

    function: Any
    metadata: dict[str, Any]
    library: Any

    def __call__(self, stream: Any, **values: int) -> None:
        """Launch on ``stream`` (a CUstream or an int); pointers are addresses.

        Raises TypeError if the arguments are not exactly the kernel's.
        """
        from cuda.bindings import driver

        names, types = [], []
        for p in self.metadata["parameters"]:
            if p["type"] != "null pointer":
                names.append(p["name"])
            types.append(ctypes.c_int32 if p["type"] == "i32" else ctypes.c_void_p)
        if set(names) != set(values):
            missing, extra = set(names) - set(values), set(values) - set(names)
            raise TypeError(
                f"{self.metadata['name']}: missing {sorted(missing)}, unknown {sorted(extra)}"
            )
        scratch = len(types) - len(names)
        x, y, z = grid(self.metadata["grid"], values)
        packed = (tuple(values[n] for n in names) + (0,) * scratch, tuple(types))
        threads, shared = self.metadata["threads"], self.metadata["shared"]
        _check(
            driver.cuLaunchKernel(self.function, x, y, z, threads, 1, 1, shared, stream, packed, 0)
        )

    def unload(self) -> None:
        """Free the code; no launch may be under way or come later."""
        from cuda.bindings import driver

        _check(driver.cuLibraryUnload(self.library))


def load(folder: Path, name: str, capability: tuple[int, int]) -> Kernel:
    """Load a kernel into the current context, after checking its file against its hash."""
    from cuda.bindings import driver

    file = find(folder, name, capability)
    metadata = json.loads(file.read_text())
    if metadata["format"] != FORMAT:
        raise ValueError(f"{file}: format {metadata['format']}, this version reads {FORMAT}")
    image = file.with_suffix(".cubin").read_bytes()
    if hashlib.sha256(image).hexdigest() != metadata["sha256"]["cubin"]:
        raise ValueError(f"{file.with_suffix('.cubin')} is damaged: run python -m kernels.aot")
    library = _check(driver.cuLibraryLoadData(image, None, None, 0, None, None, 0))
    kernel = _check(driver.cuLibraryGetKernel(library, metadata["kernel"].encode()))
    if metadata["shared"] > DEFAULT_SHARED_LIMIT:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        device = _check(driver.cuCtxGetDevice())
        _check(driver.cuKernelSetAttribute(attribute, metadata["shared"], kernel, device))
    return Kernel(_check(driver.cuKernelGetFunction(kernel)), metadata, library)


def _check(result: tuple[Any, ...]) -> Any:
    error, *values = result
    if error != 0:
        raise RuntimeError(f"the CUDA driver answered {error.name}")
    return values[0] if values else None
