"""The parts of the GPU backends: driver, TensorRT, arrays, memory pool, the step of one frame.

Here: whether such a backend can run, and making one. Nothing heavy is imported before that.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import BackendError, MissingExtraError

if TYPE_CHECKING:
    from engine.runtime.cuda import CudaBackend


def check(flavour: str, model: str | None, bundles: Path) -> None:
    """Raise the error that says why the backend ``flavour`` cannot run ``model`` here."""
    from engine.runtime.gpu.driver import Device, need_driver
    from engine.runtime.gpu.tensorrt import MODULES

    need_driver()
    module = MODULES[flavour]
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(f"backend '{flavour}'", module, "gpu")
    Device().release()

    from engine.bundle import find_bundles

    if not find_bundles(bundles, model, flavour):
        raise BackendError(no_bundle(flavour, model, bundles))


def create(
    flavour: str, model: str, weights: Path, bundles: Path, expect_sha256: str | None
) -> CudaBackend:
    """Load the bundles of ``model``; raises BackendError, MissingExtraError or ModelError."""
    from engine.runtime.cuda import CudaBackend
    from engine.runtime.gpu.driver import Device
    from engine.runtime.gpu.program import Library
    from engine.runtime.gpu.tensorrt import TensorRT

    device = Device()

    from engine.bundle import find_bundles, load_bundle

    try:
        tensorrt = TensorRT(flavour, device)
        found = [load_bundle(b, expect_sha256) for b in find_bundles(bundles, model, flavour)]
        if not found:
            raise BackendError(no_bundle(flavour, model, bundles))
        return CudaBackend(Library(device, tensorrt, found))
    except BaseException:
        device.release()
        raise


def no_bundle(flavour: str, model: str | None, bundles: Path) -> str:
    """The message where nothing was built."""
    named = f" --model {model}" if model else ""
    return (
        f"nothing is built for '{flavour}' in '{bundles}'; run: python -m engine.build --fp16"
        f"{named} --runtime {flavour}"
    )
