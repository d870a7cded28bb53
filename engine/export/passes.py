"""Rewrites of a stage's ONNX graph that leave its result the same and suit the compiler better."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

LANES = 8  # the channels that an fp16 tensor core takes at a time


def means_in_fp32(model: onnx.ModelProto) -> int:
    """Take the means of fp16 tensors in fp32; returns how many.

    A mean over an image sums thousands of values: in fp16 it would lose most of their bits, and
    overflow at 65504.
    """
    types = _types(model)
    nodes: list[NodeProto] = []
    changed = 0
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or types.get(node.input[0]) != TensorProto.FLOAT16:
            nodes.append(node)
            continue
        changed += 1
        source, result = node.input[0], node.output[0]
        node.input[0], node.output[0] = f"{source}.{result}.fp32", f"{result}.fp32"
        nodes += [
            helper.make_node("Cast", [source], [node.input[0]], to=TensorProto.FLOAT),
            node,
            helper.make_node("Cast", [node.output[0]], [result], to=TensorProto.FLOAT16),
        ]
    _replace_nodes(model, nodes)
    return changed


def for_turing(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a stage's graph in the form that suits sm_75 better.

    TensorRT for RTX 1.7 expands the weights of depthwise convolutions and of those with few input
    channels there: 283 MB for the query encoder of MobileNetV2 in fp16 at 480×864, whose weights
    are 1.2 MB; in this form 1.4 MB.
    """
    graph = onnx.ModelProto.FromString(model.SerializeToString())
    half = any(i.type.tensor_type.elem_type == TensorProto.FLOAT16 for i in graph.graph.input)
    depthwise_as_products(graph)
    # TensorRT's own copy has 8 channels for 3 to 5 in fp16 and for 5 in fp32: the zeros are free.
    fill_channels(graph, 3 if half else 5)
    return infer(graph)


def fill_channels(model: onnx.ModelProto, least: int) -> int:
    """Widen spatial convolutions of ``least`` to 7 channels to 8, with zeros; returns how many."""
    weights = {t.name: t for t in model.graph.initializer}
    uses = Counter(i for n in model.graph.node for i in n.input)
    nodes: list[NodeProto] = []
    changed = 0
    for node in model.graph.node:
        weight = weights.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is not None and uses[weight.name] > 1:
            weight = None  # the others would no longer fit it
        spatial = weight is not None and weight.dims[2] > 1 and _group(node) == 1
        if spatial and weight is not None and least <= weight.dims[1] < LANES:
            values = numpy_helper.to_array(weight)
            missing = LANES - values.shape[1]
            amount, wide = f"{node.output[0]}.pads", f"{node.output[0]}.wide"
            model.graph.initializer.append(
                numpy_helper.from_array(np.array([0, 0, 0, 0, 0, missing, 0, 0]), amount)
            )
            nodes.append(helper.make_node("Pad", [node.input[0], amount], [wide]))
            node.input[0] = wide
            filled = np.pad(values, ((0, 0), (0, missing), (0, 0), (0, 0)))
            weight.CopyFrom(numpy_helper.from_array(filled, weight.name))
            changed += 1
        nodes.append(node)
    _replace_nodes(model, nodes)
    return changed


def depthwise_as_products(model: onnx.ModelProto) -> int:
    """Write depthwise convolutions as sums of shifted products, in fp32; returns how many."""
    types, shapes = _types(model), _shapes(model)
    weights = {t.name: t for t in model.graph.initializer}
    nodes: list[NodeProto] = []
    added: dict[str, onnx.TensorProto] = {}

    def constant(name: str, value: object, dtype: type[np.generic] = np.int64) -> str:
        added[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    changed = 0
    for node in model.graph.node:
        weight = weights.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is None or _group(node) == 1 or weight.dims[1] != 1:
            nodes.append(node)
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
        down, across = attributes.get("strides", (1, 1))
        changed += 1
        y = node.output[0]
        taps = numpy_helper.to_array(weight).astype(np.float32)
        rows, columns = shapes[y][2:]
        dtype = types[y]
        wide, total = f"{y}.padded", ""
        pads = constant(f"{y}.pads", [0, 0, top, left, 0, 0, bottom, right])
        nodes += [
            helper.make_node("Cast", [node.input[0]], [f"{y}.x"], to=TensorProto.FLOAT),
            helper.make_node("Pad", [f"{y}.x", pads], [wide]),
        ]
        axes = constant("spatial axes", [2, 3])
        steps = constant(f"steps {down} {across}", [down, across])
        for i in range(taps.shape[2]):
            for j in range(taps.shape[3]):
                tap = f"{y}.{i}.{j}"
                begin = constant(f"from {i} {j}", [i, j])
                end = constant(
                    f"{tap}.end", [i + (rows - 1) * down + 1, j + (columns - 1) * across + 1]
                )
                factor = constant(f"{tap}.w", taps[:, 0, i, j].reshape(1, -1, 1, 1), np.float32)
                nodes += [
                    helper.make_node("Slice", [wide, begin, end, axes, steps], [f"{tap}.s"]),
                    helper.make_node("Mul", [f"{tap}.s", factor], [f"{tap}.p"]),
                ]
                if total:
                    nodes.append(helper.make_node("Add", [total, f"{tap}.p"], [f"{tap}.t"]))
                total = f"{tap}.t" if total else f"{tap}.p"
        if len(node.input) > 2:
            bias = numpy_helper.to_array(weights[node.input[2]]).reshape(1, -1, 1, 1)
            name = constant(f"{y}.bias", bias, np.float32)
            nodes.append(helper.make_node("Add", [total, name], [f"{y}.sum"]))
            total = f"{y}.sum"
        nodes.append(helper.make_node("Cast", [total], [y], to=dtype))
    _replace_nodes(model, nodes)
    used = {i for n in model.graph.node for i in n.input}
    kept = [t for t in model.graph.initializer if t.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *added.values()])
    return changed


def _group(node: NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)


def _values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [*model.graph.value_info, *model.graph.input, *model.graph.output]


def _types(model: onnx.ModelProto) -> dict[str, int]:
    return {v.name: v.type.tensor_type.elem_type for v in _values(model)}


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {
        v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in _values(model)
    }


def infer(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph, checked, with the types and shapes of all its values inferred anew."""
    bare = onnx.ModelProto.FromString(model.SerializeToString())
    del bare.graph.value_info[:]
    full = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True)
    onnx.checker.check_model(full, full_check=True)
    return full


def _replace_nodes(model: onnx.ModelProto, nodes: list[NodeProto]) -> None:
    copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
