"""Graph rewrites: the result stays, and what they are for is true."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers.engines import needs_rtx
from onnx import TensorProto, helper, numpy_helper

from engine.build import trt
from engine.export.passes import (
    depthwise_as_products,
    fill_channels,
    for_turing,
    infer,
    means_in_fp32,
)


def graph(nodes, weights, shape, dtype=np.float16) -> onnx.ModelProto:
    """``x`` of ``shape`` → ``y``."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(typed(w, dtype), n) for n, w in weights.items()],
    )
    return infer(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    )


def typed(w: np.ndarray, dtype) -> np.ndarray:
    return w if w.dtype == np.int64 else w.astype(dtype)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def operations(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("stride", "pads"), [(1, [1, 1, 1, 1]), (2, [0, 0, 1, 1]), (2, [1, 1, 1, 1]), (1, [0] * 4)]
)
def test_depthwise_convolutions_as_products(rng, dtype, bias, stride, pads):
    weights = {"w": rng.normal(size=(6, 1, 3, 3))} | ({"b": rng.normal(size=6)} if bias else {})
    node = helper.make_node(
        "Conv", ["x", *weights], ["y"], group=6, strides=[stride] * 2, pads=pads
    )
    model = graph([node], weights, [2, 6, 9, 12], dtype)
    x = rng.normal(size=(2, 6, 9, 12)).astype(dtype)
    want = run(model, x)
    assert depthwise_as_products(model) == 1
    got = run(infer(model), x)
    assert "Conv" not in operations(model) and got.dtype == dtype and np.ptp(want) > 1
    np.testing.assert_allclose(got, want, atol=2e-2 if dtype == np.float16 else 1e-5)


def test_other_convolutions_stay(rng):
    nodes = [
        helper.make_node("Conv", ["x", "grouped"], ["a"], group=2),
        helper.make_node("Conv", ["a", "dense"], ["y"]),
    ]
    weights = {"grouped": rng.normal(size=(8, 4, 3, 3)), "dense": rng.normal(size=(4, 8, 1, 1))}
    model = graph(nodes, weights, [1, 8, 8, 8])
    before = model.SerializeToString()
    assert depthwise_as_products(model) == 0 and fill_channels(model, 3) == 0
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("channels", "least", "count"), [(5, 5, 1), (3, 3, 1), (3, 5, 0), (8, 3, 0)]
)
def test_few_channels_are_filled_with_zeros(rng, channels, least, count):
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4, strides=[2, 2])
    model = graph([node], {"w": rng.normal(size=(4, channels, 3, 3))}, [1, channels, 8, 8])
    x = rng.normal(size=(1, channels, 8, 8)).astype(np.float16)
    want = run(model, x)
    assert fill_channels(model, least) == count
    np.testing.assert_allclose(run(infer(model), x), want, atol=1e-3)
    (weight,) = (t for t in model.graph.initializer if t.name == "w")
    assert weight.dims[1] == (8 if count else channels)


def test_a_weight_that_two_convolutions_share_is_left_alone(rng):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Conv", ["a", "w"], ["y"], pads=[1] * 4),
    ]
    model = graph(nodes, {"w": rng.normal(size=(5, 5, 3, 3))}, [1, 5, 8, 8])
    assert fill_channels(model, 3) == 0


def test_means_are_taken_in_fp32():
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=1)]
    nodes.append(helper.make_node("Relu", ["m"], ["y"]))
    model = graph(nodes, {"axes": np.array([2, 3])}, [1, 2, 64, 64])
    assert means_in_fp32(model) == 1
    model = infer(model)
    assert operations(model) == ["Cast", "ReduceMean", "Cast", "Relu"]
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    (mean,) = (n for n in model.graph.node if n.op_type == "ReduceMean")
    assert types[mean.input[0]] == types[mean.output[0]] == TensorProto.FLOAT
    x = np.full((1, 2, 64, 64), 100, np.float16)  # their sum is 409,600
    np.testing.assert_array_equal(run(model, x), np.full((1, 2, 1, 1), 100))
    assert means_in_fp32(model) == 0


@pytest.mark.build
@needs_rtx
def test_turings_form_keeps_its_engine_small(rng):
    """If TensorRT no longer expands the weights, the form has no reason left: remove it."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=96, pads=[1] * 4)
    model = graph([node], {"w": rng.normal(size=(96, 1, 3, 3))}, [1, 96, 32, 32])
    plain, rewritten = (
        trt.build_engine("tensorrt-rtx", m.SerializeToString(), ("sm_75",), "fp16")
        for m in (model, for_turing(model))
    )
    assert plain.weight_bytes > 1_000_000 and rewritten.weight_bytes < 20_000
