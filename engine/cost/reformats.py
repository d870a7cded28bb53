"""What TensorRT has to copy into another format, or to pad, in a graph of fixed shapes.

Read off the graph alone: a list of candidates, since the tactics are TensorRT's own choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto, helper

from engine.cost.graph import VIEWS, Graph, Value, node_name

GROUP = 8  # channels that fp16 tensor-core kernels take at once

REASONS = {
    "transpose": "tokens are channels-last at the kernels, planes channels-first in ONNX: a copy,"
    " unless the neighbour can work in the other order",
    "cast": "another dtype needs another tensor: a copy, unless it joins an elementwise neighbour",
    "resize": "has a kernel of its own, which joins no convolution: its result goes to memory",
    "channels": f"fp16 tensor-core convolutions take channels in groups of {GROUP}: others are"
    " padded, or run without tensor cores",
    "boundary": "engines exchange planes in linear order, convolutions work in groups of channels:"
    " a copy, unless the build allows that order on both sides (ITensor.allowed_formats)",
}
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_REORDERED = VIEWS | {"Transpose", "Cast", "Resize"}  # end a run of planes in one format


@dataclass(frozen=True)
class Reformat:
    """A tensor to copy or to pad. kind: of `REASONS`. bytes: packed. change: what happens to it."""

    kind: str
    node: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    change: str


def reformats(model: onnx.ModelProto) -> list[Reformat]:
    """List the reformats in the graph's order; raises InputError as `engine.cost.graph.Graph` does.

    Channels and boundaries are those of fp16 convolutions: fp32 has no groups to fill.
    """
    graph = Graph(model)
    found = list(_boundaries(graph, graph.inputs, _before_convolutions(graph), "read"))
    for i, node in enumerate(graph.nodes):
        found.extend(_of_node(graph, node, node_name(node, i)))
    found.extend(_boundaries(graph, graph.outputs, _behind_convolutions(graph), "written"))
    return found


def _of_node(graph: Graph, node: NodeProto, name: str) -> Iterator[Reformat]:
    out, source = graph.results(node)[0], graph.operands(node)[0]
    if node.op_type == "Transpose":
        perm = helper.get_node_attr_value(node, "perm")
        moved = [axis for axis in perm if source.shape[axis] > 1]
        if moved != sorted(moved):  # else only axes of size one move: a view
            yield _entry("transpose", name, out, f"axes {list(perm)} of {list(source.shape)}")
    elif node.op_type == "Cast" and source.elements > 1:
        yield _entry("cast", name, out, f"{source.dtype_name} → {out.dtype_name}")
    elif node.op_type == "Resize":
        yield _entry("resize", name, out, f"from {list(source.shape)}")
    elif node.op_type in _CONVOLUTIONS and out.dtype == TensorProto.FLOAT16:
        for verb, value in (("reads", source), ("writes", out)):
            channels = value.shape[1]
            if channels % GROUP:
                padded = -(-channels // GROUP) * GROUP
                yield _entry("channels", name, value, f"{verb} {channels} channels → {padded}")


def _boundaries(
    graph: Graph, names: Iterable[str], planes: set[str], verb: str
) -> Iterator[Reformat]:
    for name in names:
        value = graph.value(name)
        if name in planes and value.dtype == TensorProto.FLOAT16:
            yield _entry("boundary", name, value, f"{verb} by convolutions")


def _before_convolutions(graph: Graph) -> set[str]:
    """What convolutions read, and what that was made of without a change of format."""
    found: set[str] = set()
    for node in reversed(graph.nodes):
        if node.op_type in _CONVOLUTIONS:
            found.add(node.input[0])
        elif node.op_type not in _REORDERED and found.intersection(node.output):
            found.update(v.name for v in graph.activations(node) if len(v.shape) == 4)
    return found


def _behind_convolutions(graph: Graph) -> set[str]:
    """What convolutions write, and what is made of that without a change of format."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op_type in _CONVOLUTIONS:
            found.update(node.output)
        elif node.op_type not in _REORDERED and found.intersection(node.input):
            found.update(v.name for v in graph.results(node) if len(v.shape) == 4)
    return found


def _entry(kind: str, node: str, value: Value, change: str) -> Reformat:
    return Reformat(kind, node, value.name, value.dtype_name, value.shape, value.bytes, change)
