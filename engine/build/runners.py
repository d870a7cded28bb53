"""The stages run frame by frame, in PyTorch or in ONNX Runtime: what parity.py compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from engine.export.stages import OUTPUTS, Decode, EncodeQuery, pool_slots
from engine.model import MobileVOS
from kernels.memory_read.reference import memory_read_reference

Arrays = dict[str, NDArray[Any]]


class Runner(Protocol):
    """What runs stages. one_graph: there is the one stage ``step``."""

    one_graph: bool

    def run(self, stage: str, inputs: Arrays) -> Arrays:
        """Run a stage on inputs of any float type; returns its outputs in their own."""


class Reference:
    """The stages in PyTorch, fp32."""

    one_graph = False

    def __init__(self, model: MobileVOS) -> None:
        self.encode, self.decode = EncodeQuery(model).eval(), Decode(model).eval()

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
        self.one_graph = "step" in self.sessions

    def run(self, stage: str, inputs: Arrays) -> Arrays:
        """Run a graph; inputs are cast to what it declares."""
        session = self.sessions[stage]
        types = {i.name: _DTYPES[i.type] for i in session.get_inputs()}
        feed = {n: np.ascontiguousarray(inputs[n], t) for n, t in types.items()}
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(names, feed), strict=True))


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

    Slots 0 and 1 take turns, slot 2 is the objects' anchor.
    """

    def __init__(self, stages: Runner, objects: int, dims: tuple[int, int, int]) -> None:
        self.stages, self.objects = stages, objects
        tokens, key_dim, value_dim = dims
        slots = pool_slots(objects)
        self.keys = np.zeros((slots, tokens, key_dim), np.float32)
        self.values = np.zeros((slots, objects, tokens, value_dim), np.float32)
        self.last = 0
        self.outputs: Arrays = {}

    def frame(self, image: NDArray[np.float32], masks: Arrays, first: bool) -> Arrays:
        """Run a frame; returns all that the stages gave, and the readout."""
        slots = np.full((self.objects, 2), -1 if first else self.last, np.int32)
        if not first:
            slots[:, 0] = 2
        memory: Arrays = {"keys": self.keys, "values": self.values, "slots": slots}
        if self.stages.one_graph:
            return self.stages.run("step", {"image": image, **memory, **masks})
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
