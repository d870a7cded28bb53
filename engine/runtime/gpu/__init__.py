"""The parts of the GPU backends: driver, TensorRT, arrays, memory pool, the step of one frame.

Here: whether such a backend can run, and making one. Nothing heavy is imported before that.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from engine.bundle import MANIFEST, file_sha256
from engine.errors import BackendError, MissingExtraError

if TYPE_CHECKING:
    from engine.runtime.cuda import CudaBackend


def check(flavour: str, model: str | None, bundles: Path) -> None:
    """Raise the error that says why the backend ``flavour`` cannot run ``model`` here."""
    from engine.runtime.gpu.driver import Device, need_driver
    from engine.runtime.gpu.tensorrt import MODULES

    need_driver()
    module = MODULES[flavour]
    if not find_module(module):
        raise MissingExtraError(f"backend '{flavour}'", module, "gpu")
    Device().release()
    if not any(bundles.glob(f"{model or '*'}-*-{flavour}/{MANIFEST}")):
        named = f" --model {model}" if model else ""
        raise BackendError(
            f"nothing is built for '{flavour}' in '{bundles}'; run: python -m engine.build --fp16"
            f"{named} --runtime {flavour}"
        )


def find_module(name: str) -> bool:
    """Whether a package is installed, without importing it."""
    return importlib.util.find_spec(name) is not None


def create(
    flavour: str, model: str, weights: Path, bundles: Path, expect_sha256: str | None
) -> CudaBackend:
    """A backend for the bundles of ``model``, which it loads as sizes and objects ask for them.

    Raises BackendError or MissingExtraError.
    """
    from engine.runtime.cuda import CudaBackend
    from engine.runtime.gpu.driver import Device
    from engine.runtime.gpu.program import Library
    from engine.runtime.gpu.tensorrt import TensorRT

    device = Device()
    try:
        tensorrt = TensorRT(flavour, device)
    except BaseException:
        device.release()
        raise
    return CudaBackend(
        Library(device, tensorrt, model, bundles, file_sha256(weights), expect_sha256)
    )
