"""A stand-in GPU with bundles on it, ready for a backend."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import cuda.bindings
import numpy as np

from doubles import cuda_driver, rtx
from doubles.code import Code
from doubles.machine import Machine
from doubles.rtx import Graph, Tensor, Toy
from kernels import aot

ARCH = "sm_86"
FLAVOUR = "tensorrt-rtx"


@dataclass
class Rig:
    """The machine, the modules in front of it, and the bundles."""

    machine: Machine
    driver: cuda_driver.Driver
    tensorrt: rtx.Module
    bundles: list[Any]

    def backend(self, **options: Any) -> Any:
        """A new backend of the real source."""
        from engine.runtime.cuda import CudaBackend

        return CudaBackend(self.library(), **options)

    def library(self) -> Any:
        from engine.runtime.gpu.driver import Device
        from engine.runtime.gpu.program import Library
        from engine.runtime.gpu.tensorrt import TensorRT

        device = Device()
        return Library(device, TensorRT(FLAVOUR, device), self.bundles)


@contextlib.contextmanager
def rigged(
    bundles: Sequence[Any], machine: Machine | None = None, interpreter: Any = None
) -> Iterator[Rig]:
    """Put the stand-ins in the place of ``cuda.bindings.driver`` and ``tensorrt_rtx``."""
    machine = machine or Machine()
    code, tensorrt = Code(machine, interpreter), rtx.Module(machine)
    for bundle in bundles:
        code.learn(bundle.folder)
        for stage, graph in bundle.graphs.items():
            tensorrt.learn(bundle.engine(stage, ARCH)[1], graph)
    driver = cuda_driver.Driver(machine, code)
    with (
        mock.patch.object(cuda.bindings, "driver", driver, create=True),
        mock.patch.dict(sys.modules, {"tensorrt_rtx": tensorrt}),
        mock.patch("engine.runtime.gpu.driver.need_driver", lambda: None),
    ):
        yield Rig(machine, driver, tensorrt, list(bundles))


@dataclass
class FakeBundle:
    """What the runtime asks of a bundle, without engines that only a GPU could load."""

    folder: Path
    graphs: dict[str, Any]
    objects: int
    size: tuple[int, int]
    precision: str = "fp32"
    read: str = "triton"
    sha256: str = "0" * 64
    manifest: Any = field(init=False)

    def __post_init__(self) -> None:
        self.manifest = SimpleNamespace(
            objects=self.objects,
            size=self.size,
            precision=self.precision,
            read=self.read,
            stages={
                name: SimpleNamespace(inputs=_told(g.inputs), outputs=_told(g.outputs))
                for name, g in self.graphs.items()
            },
        )

    def engine(self, stage: str, arch: str) -> tuple[Path, bytes]:
        return self.folder / f"{stage}.{arch}.engine", f"{id(self)} {stage} {arch}".encode()


def _told(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        t.name: SimpleNamespace(dtype=np.dtype(t.dtype).name, shape=list(t.shape))
        for t in tensors.values()
    }


def write_kernels(folder: Path) -> None:
    """The real cubins, which nothing here can run, and their launch JSON."""
    for variant in aot.variants(ARCH):
        aot.write(aot.compile_variant(variant, ARCH), folder)


def toy_bundle(
    folder: Path, objects: int, size: tuple[int, int], precision: str = "fp32", read: str = "triton"
) -> FakeBundle:
    """Engines of the right shapes that are no network: fast, and sensitive to every input."""
    kind = {"fp32": np.float32, "fp16": np.float16}[precision]
    (height, width), k = size, objects
    h, w = height // 16, width // 16
    image = Tensor("image", (1, 3, height, width), kind)
    key, value = Tensor("key", (h * w, 64), kind), Tensor("value", (k, h * w, 64), kind)
    features = [
        Tensor("f16", (1, 5, h, w), kind),
        Tensor("f8", (1, 3, 2 * h, 2 * w), kind),
        Tensor("f4", (1, 2, 4 * h, 4 * w), kind),
        Tensor("compressed", (1, 4, h, w), kind),
    ]
    masks = [
        Tensor("given", (k, height, width), np.float32),
        Tensor("use_given", (k,), np.bool_),
        Tensor("active", (k,), np.bool_),
    ]
    soft = Tensor("probabilities", (k + 1, height, width), np.float32)
    scores = Tensor("scores", (k, 2), np.float32)
    readout = Tensor("readout", (k, h * w, 64), kind)
    if read == "triton":
        toys = [
            Toy("encode_query", [image], [key, *features]),
            Toy("decode", [image, readout, *features, *masks], [soft, value, scores]),
        ]
    else:
        memory = [
            Tensor("keys", (4, h * w, 64), kind),
            Tensor("values", (4, k, h * w, 64), kind),
            Tensor("slots", (k, 2), np.int32),
        ]
        toys = [Toy("step", [image, *memory, *masks], [soft, key, value, scores])]
    return FakeBundle(folder, {t.name: t for t in toys}, objects, size, precision, read)


def network_bundle(
    folder: Path, objects: int, size: tuple[int, int], precision: str = "fp32", read: str = "triton"
) -> FakeBundle:
    """The real graphs of a shipped model."""
    import onnx

    from engine.model import load
    from engine.stages import stage_graphs
    from engine.weights import find

    name = "mobilevos-mobilenetv2"
    graphs = {}
    for stage, model in stage_graphs(
        load(name, find(name)[0]), size, objects, precision, read
    ).items():
        file = folder / f"{stage}-{precision}-{read}-{objects}.onnx"
        onnx.save(model, file)
        graphs[stage] = Graph(file)
        graphs[stage].name = stage
    return FakeBundle(folder, graphs, objects, size, precision, read)
