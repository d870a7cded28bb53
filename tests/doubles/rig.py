"""A stand-in GPU with bundles on it, ready for a backend."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import cuda.bindings

from doubles import cuda_driver, rtx
from doubles.code import Code
from doubles.machine import Machine

ARCH = "sm_86"


@dataclass
class Rig:
    """The machine and the modules in front of it."""

    machine: Machine
    driver: cuda_driver.Driver
    tensorrt: rtx.Module
    bundles: list[Any]


@contextlib.contextmanager
def rigged(
    bundles: Sequence[Any], machine: Machine | None = None, interpreter: Any = None
) -> Iterator[Rig]:
    """Put the stand-ins in the place of ``cuda.bindings.driver`` and ``tensorrt_rtx``."""
    machine = machine or Machine()
    code, tensorrt = Code(machine, interpreter), rtx.Module(machine)
    for bundle in bundles:
        code.learn(bundle.folder)
        for stage in bundle.manifest.stages:
            tensorrt.learn(bundle.engine(stage, ARCH)[0], bundle.folder / f"{stage}.onnx")
    driver = cuda_driver.Driver(machine, code)
    with (
        mock.patch.object(cuda.bindings, "driver", driver, create=True),
        mock.patch.dict(sys.modules, {"tensorrt_rtx": tensorrt}),
    ):
        yield Rig(machine, driver, tensorrt, list(bundles))
