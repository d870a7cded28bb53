"""A stand-in GPU with bundles on it, ready for a backend."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import cuda.bindings
import numpy as np

from doubles import cuda_driver, rtx
from doubles.code import Code
from doubles.machine import Machine
from doubles.rtx import Graph, Tensor, Toy
from engine import bundle
from engine.export.stages import symbols
from engine.weights import find
from kernels import aot

ARCH = "sm_86"
BACKEND = "tensorrt-rtx"
MODEL = "mobilevos-mobilenetv2"
WEIGHTS = bundle.file_sha256(find(MODEL)[0])


class Made(NamedTuple):
    """A bundle's folder, and what its engines do, by stage."""

    folder: Path
    graphs: dict[str, Any]


@dataclass
class Rig:
    """The machine, the modules in front of it, and the bundles."""

    machine: Machine
    driver: cuda_driver.Driver
    tensorrt: rtx.Module
    bundles: Path

    def load(self, **options: Any) -> Any:
        """A segmenter, by the way that users take."""
        from engine.segmenter import Segmenter

        return Segmenter.load(MODEL, BACKEND, bundles=self.bundles, **options)

    def backend(self, **options: Any) -> Any:
        """A new backend of the real source."""
        from engine.runtime.cuda import CudaBackend

        return CudaBackend(self.library(), **options)

    def library(self) -> Any:
        from engine.runtime.gpu.driver import Device
        from engine.runtime.gpu.program import Library
        from engine.runtime.gpu.tensorrt import TensorRT

        device = Device()
        return Library(device, TensorRT(BACKEND, device), MODEL, self.bundles, WEIGHTS)


@contextlib.contextmanager
def rigged(
    bundles: Sequence[Made], machine: Machine | None = None, interpreter: Any = None
) -> Iterator[Rig]:
    """Put the stand-ins in the place of ``cuda.bindings.driver`` and ``tensorrt_rtx``."""
    machine = machine or Machine()
    code, tensorrt = Code(machine, interpreter), rtx.Module(machine)
    for made in bundles:
        code.learn(made.folder)
        stages = bundle.load_bundle(made.folder).manifest.stages
        for stage, graph in made.graphs.items():
            file = made.folder / stages[stage].engines[ARCH].file
            tensorrt.learn(file.read_bytes(), graph)
    driver = cuda_driver.Driver(machine, code)
    with (
        mock.patch.object(cuda.bindings, "driver", driver, create=True),
        mock.patch.dict(sys.modules, {"tensorrt_rtx": tensorrt}),
        mock.patch("engine.runtime.gpu.program.need_driver", lambda: None),
        mock.patch("engine.runtime.gpu.program.find_module", lambda name: True),
    ):
        yield Rig(machine, driver, tensorrt, bundles[0].folder.parent)


def built(folder: Path) -> Made:
    """A bundle that ``engine.build`` wrote: its engines run as the graphs that it holds."""
    graphs = {}
    for name, stage in bundle.load_bundle(folder).manifest.stages.items():
        graphs[name] = Graph(folder / stage.onnx[ARCH])
        graphs[name].name = name
    return Made(folder, graphs)


def write(
    out: Path,
    graphs: dict[str, Any],
    objects: int,
    size: tuple[int, int],
    precision: str,
    **changes: Any,
) -> Made:
    """Write a bundle by the product's own code, with stand-ins only for its engines."""
    files = dict(kernels())
    stages = {}
    for name, graph in graphs.items():
        engine = f"{name}.{ARCH}.engine"
        files[engine] = f"{name} {objects} {size} {precision}".encode()
        files[f"{name}.onnx"] = b"graph of a stand-in"
        stages[name] = bundle.Stage(
            inputs=_told(graph.inputs, bool(graph.open)),
            outputs=_told(graph.outputs, bool(graph.open)),
            onnx={ARCH: f"{name}.onnx"},
            engines={ARCH: bundle.Engine(engine, 4096, 0)},
        )
    manifest = bundle.Manifest(
        model=MODEL,
        model_sha256=WEIGHTS,
        precision=precision,
        runtime=BACKEND,
        runtime_version="0",
        size=size,
        objects=objects,
        dynamic=None,
        targets=(ARCH,),
        versions={},
        stages=stages,
        kernels={ARCH: {}},
        parity={},
        files={},
    )
    return Made(bundle.write_bundle(out, replace(manifest, **changes), files), graphs)


def _told(tensors: dict[str, Tensor], opened: bool) -> dict[str, bundle.Tensor]:
    told = {}
    for name, t in tensors.items():
        named = symbols(name) if opened else {}
        shape = tuple(named.get(i, side) for i, side in enumerate(t.shape))
        told[name] = bundle.Tensor(np.dtype(t.dtype).name, shape)
    return told


@functools.cache
def kernels() -> dict[str, bytes]:
    """The real cubins of one architecture, which nothing here can run, and their launch JSON."""
    files = {}
    for variant in aot.variants(ARCH):
        built = aot.compile_variant(variant, ARCH)
        files[f"{variant.name}.{ARCH}.cubin"] = built.cubin
        files[f"{variant.name}.{ARCH}.json"] = json.dumps(aot.launch_metadata(built)).encode()
    return files


def toy_bundle(
    out: Path,
    objects: int,
    size: tuple[int, int],
    precision: str = "fp32",
    **changes: Any,
) -> Made:
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
    toys = [
        Toy("encode_query", [image], [key, *features]),
        Toy("decode", [image, readout, *features, *masks], [soft, value, scores]),
    ]
    if changes.get("dynamic"):
        for toy in toys:
            toy.open = {name for name in toy.inputs if symbols(name)}
    return write(out, {t.name: t for t in toys}, objects, size, precision, **changes)


def network_bundle(out: Path, objects: int, size: tuple[int, int], precision: str = "fp32") -> Made:
    """The real graphs of a shipped model."""
    import onnx

    from engine.export.stages import stage_graphs
    from engine.model import load

    out.mkdir(exist_ok=True)
    graphs = {}
    for stage, model in stage_graphs(load(MODEL, find(MODEL)[0]), size, objects, precision).items():
        file = out.parent / f"{stage}-{precision}-{objects}.onnx"
        onnx.save(model, file)
        graphs[stage] = Graph(file)
        graphs[stage].name = stage
    return write(out, graphs, objects, size, precision)
