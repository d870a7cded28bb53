"""Which TensorRT builds here, for which GPUs, and which of them share an engine."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

from engine.errors import BackendError, EngineError, InputError, MissingExtraError, one_line
from engine.runtime.gpu.driver import Device
from engine.runtime.gpu.tensorrt import MODULES

#: What TensorRT for RTX builds for; sm_90 and sm_100 need the full TensorRT on the GPU itself.
RTX_TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120")
TURING = "sm_75"
OLDEST = (10, 12)


def choose_runtime(name: str | None) -> tuple[str, str]:
    """Choose the runtime to build with: ``name``, or what is installed. Returns it and the reason.

    Raises MissingExtraError if it, or any, is not installed.
    """
    installed = [n for n, p in MODULES.items() if importlib.util.find_spec(p)]
    if name is not None:
        if name not in MODULES:
            raise InputError(f"unknown runtime '{name}'; choose one of: {', '.join(MODULES)}")
        if name not in installed:
            raise MissingExtraError(f"--runtime {name}", MODULES[name], "gpu")
        return name, "asked for"
    if not installed:
        raise MissingExtraError("building engines", MODULES["tensorrt-rtx"], "gpu")
    if len(installed) == 1:
        return installed[0], "the one that is installed"
    if device_target() is None:
        return "tensorrt-rtx", "both are installed, and without a GPU only this one builds"
    return "tensorrt", "both are installed, and this one tunes on the GPU in this machine"


def load(runtime: str) -> Any:
    """Import a runtime's module.

    Raises MissingExtraError, or BackendError for a version that is too old or does not load.
    """
    package = MODULES[runtime]
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"runtime '{runtime}'", str(error.name), "gpu") from error
    except (ImportError, OSError) as error:
        raise BackendError(
            f"the package '{package}' does not load ({one_line(error)}); "
            f"reinstall it: pip install --force-reinstall {package.replace('_', '-')}"
        ) from error
    if runtime == "tensorrt":
        version = tuple(int(part) for part in re.findall(r"\d+", module.__version__)[:2])
        if version < OLDEST:
            raise BackendError(
                f"TensorRT {module.__version__} is installed, but 10.12 or newer is needed; "
                "run: pip install 'tensorrt>=10.12'"
            )
    return module


def device_target() -> str | None:
    """The architecture of the first GPU in this machine, ``sm_86``; None without a usable one."""
    try:
        device = Device()
    except EngineError:
        return None
    device.release()
    return device.arch


def choose_targets(runtime: str, wanted: Sequence[str] | None) -> tuple[tuple[str, ...], str]:
    """Choose the architectures to build for. Returns them, in ascending order, and the reason.

    Raises InputError for a target that the runtime cannot build, BackendError without a GPU where
    one is needed.
    """
    here = device_target()
    if runtime == "tensorrt":
        if here is None:
            raise BackendError(
                "TensorRT builds on the GPU that will run the engine, and there is none here "
                "(no driver or no device); on this machine use --runtime tensorrt-rtx"
            )
        if wanted and set(wanted) != {here}:
            raise InputError(
                f"TensorRT builds for the GPU in this machine, {here}, only; leave --target out, "
                "or use --runtime tensorrt-rtx"
            )
        return (here,), "the GPU in this machine"
    if not wanted:
        if here is None:
            return RTX_TARGETS, "no GPU here: all that TensorRT for RTX builds for"
        if here in RTX_TARGETS:
            return (here,), "the GPU in this machine"
        wanted = [here]
    for target in wanted:
        if target not in RTX_TARGETS:
            raise InputError(
                f"TensorRT for RTX does not build for '{target}'; it builds for "
                f"{', '.join(RTX_TARGETS)}. Others, such as Hopper (sm_90), need "
                "--runtime tensorrt on the GPU itself"
            )
    return tuple(t for t in RTX_TARGETS if t in wanted), "asked for"


def engine_groups(targets: Sequence[str]) -> list[tuple[str, ...]]:
    """Group the targets that share an engine: all but Turing, which would slow the others down.

    https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html
    """
    groups = [tuple(t for t in targets if t != TURING), tuple(t for t in targets if t == TURING)]
    return [g for g in groups if g]
