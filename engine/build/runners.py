"""The stages run frame by frame, in PyTorch, ONNX Runtime or TensorRT: what parity.py compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from engine.bundle import Bundle
from engine.export.stages import OUTPUTS, DecodeAndEncodeValue, EncodeQuery
from engine.geometry import Geometry
from engine.model import MobileVOS
from engine.runtime.gpu.driver import Device, Scope
from engine.runtime.gpu.pool import fetch
from engine.runtime.gpu.program import Program
from engine.runtime.gpu.tensorrt import TensorRT
from kernels.memory_read.reference import memory_read_reference

Arrays = dict[str, NDArray[Any]]
SLOTS = 3  # of a Loop: two that take turns, and the objects' anchor


class Runner(Protocol):
    """What runs stages."""

    def run(self, stage: str, inputs: Arrays) -> Arrays:
        """Run a stage on inputs of any float type; returns its outputs in their own."""


class Reference:
    """The stages in PyTorch, fp32."""

    def __init__(self, model: MobileVOS) -> None:
        self.encode, self.decode = EncodeQuery(model).eval(), DecodeAndEncodeValue(model).eval()

    def run(self, stage: str, inputs: Arrays) -> Arrays:
        """Run ``encode_query`` or ``decode``."""
        module = self.encode if stage == "encode_query" else self.decode
        with torch.inference_mode():
            outputs = module(*(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs.values()))
        return dict(zip(OUTPUTS[stage], (o.numpy() for o in outputs), strict=True))


class OnnxStages:
    """Stage graphs in ONNX Runtime on the CPU: products in fp32, each result rounded to its type.

    That is what tensor cores with fp32 accumulators do. Left alone, ONNX Runtime would carry fp32
    through a chain of fp16 nodes, and agree three times better than any engine can; see `rounded`.
    """

    def __init__(self, graphs: Mapping[str, bytes], threads: int = 0) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.sessions = {
            name: ort.InferenceSession(
                rounded(graph),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["EliminateIdentity"],
            )
            for name, graph in graphs.items()
        }

    def run(self, stage: str, inputs: Arrays) -> Arrays:
        """Run a graph; inputs are cast to what it declares."""
        session = self.sessions[stage]
        types = {i.name: _DTYPES[i.type] for i in session.get_inputs()}
        feed = {n: np.ascontiguousarray(inputs[n], t) for n, t in types.items()}
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(names, feed), strict=True))


class EngineStages:
    """A bundle's engines on the GPU at hand, loaded and run by the product's own loader.

    Each stage alone, its inputs and outputs through host memory. Use with ``with``. Raises an
    EngineError where the engines or the kernels do not load, or memory is short.
    """

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self._stages = manifest.stages
        device = Device()
        self._scope = Scope(device)
        self._scope.keep(device.release)
        try:
            program = Program(device, TensorRT(manifest.runtime, device), bundle)
            self._scope.keep(program.close)
            self._stream = self._scope.stream()
            size = manifest.size
            self._tensors = program.tensors(Geometry(size, size, size))
            self._addresses = {n: self._scope.memory(t.bytes, n) for n, t in self._tensors.items()}
            scratch = self._scope.memory(program.scratch, "TensorRT's activations")
            self._contexts = {
                stage: program.context(stage, self._addresses, scratch, self._tensors)
                for stage in self._stages
            }
        except BaseException:
            self._scope.close()
            raise

    def run(self, stage: str, inputs: Arrays) -> Arrays:
        """Run an engine; inputs are cast to what it takes."""
        declared, scope = self._stages[stage], Scope(self._stream.device)
        try:
            for name in declared.inputs:
                tensor = self._tensors[name]
                staging = scope.pinned(tensor.bytes, name)
                staging.view(tensor.dtype).reshape(tensor.shape)[...] = inputs[name]
                self._stream.upload(self._addresses[name], staging)
            self._contexts[stage].run(self._stream)
            return {n: self._fetch(n) for n in declared.outputs}
        finally:
            self._stream.synchronize()
            scope.close()

    def _fetch(self, name: str) -> NDArray[Any]:
        tensor = self._tensors[name]
        return fetch(self._stream, self._addresses[name], tensor.shape, tensor.dtype)

    def __enter__(self) -> EngineStages:
        return self

    def __exit__(self, *_: object) -> None:
        self._contexts.clear()
        self._scope.close()


def rounded(graph: bytes) -> bytes:
    """The graph with two Identities behind every fp16 result, which ONNX Runtime has for fp16.

    It has no fp16 convolution on a CPU: it casts around one, and drops casts that meet. Between two
    nodes that it runs in fp32 the Identities keep them apart, and so the rounding; a single one
    it would run in fp32, too.
    """
    model = onnx.ModelProto.FromString(graph)
    fp16 = TensorProto.FLOAT16
    values = [*model.graph.value_info, *model.graph.output]
    half = {v.name for v in values if v.type.tensor_type.elem_type == fp16}
    nodes = []
    for node in model.graph.node:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        nodes.append(copy)
        for i, name in enumerate(node.output):
            if name in half:
                copy.output[i] = f"{name}.exact"
                nodes.append(helper.make_node("Identity", [f"{name}.exact"], [f"{name}.fp16"]))
                nodes.append(helper.make_node("Identity", [f"{name}.fp16"], [name]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    typed: bytes = model.SerializeToString()
    return typed


_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
    "tensor(int32)": np.int32,
}


class Loop:
    """One frame after the other through stages, as the runtime strings them together.

    Slots 0 and 1 take turns, slot 2 is the anchor.
    """

    def __init__(self, stages: Runner, objects: int, dims: tuple[int, int, int]) -> None:
        self.stages, self.objects = stages, objects
        tokens, key_dim, value_dim = dims
        self.keys = np.zeros((SLOTS, tokens, key_dim), np.float32)
        self.values = np.zeros((SLOTS, objects, tokens, value_dim), np.float32)
        self.last = 0
        self.outputs: Arrays = {}

    def frame(self, image: NDArray[np.float32], masks: Arrays, first: bool) -> Arrays:
        """Run a frame; returns all that the stages gave, and the readout."""
        slots = np.full((self.objects, 2), -1 if first else self.last, np.int32)
        if not first:
            slots[:, 0] = 2
        query = self.stages.run("encode_query", {"image": image})
        narrow = query["key"].dtype
        key, keys, values = (
            torch.from_numpy(x.astype(narrow).astype(np.float32))
            for x in (query["key"], self.keys, self.values)
        )
        read = memory_read_reference(key, keys, values, torch.from_numpy(slots))
        inputs = decode_inputs(image, read.numpy().astype(narrow), query, masks)
        return {"readout": inputs["readout"], **query, **self.stages.run("decode", inputs)}

    def remember(self, outputs: Arrays, first: bool) -> None:
        """Write the frame to the slot that it did not read, and the first to the anchor."""
        self.last = 1 - self.last
        for slot in (self.last, 2) if first else (self.last,):
            self.keys[slot], self.values[slot] = outputs["key"], outputs["value"]

    def force(self, other: Loop) -> None:
        """Take over another loop's memory."""
        self.keys, self.values, self.last = other.keys.copy(), other.values.copy(), other.last


def decode_inputs(image: Any, readout: Any, query: Arrays, masks: Arrays) -> Arrays:
    """The inputs of ``decode``, in the order of its arguments."""
    features = {n: query[n] for n in ("f16", "f8", "f4", "compressed")}
    return {"image": image, "readout": readout, **features, **masks}
