"""The check of agreement: all three networks pass it, and what is wrong does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from helpers.networks import randomised
from onnx import TensorProto, helper, numpy_helper

from engine.build import parity
from engine.build import runners as stage_run
from engine.build.parity import check, compare
from engine.data.clips import demo_clip
from engine.errors import ModelError
from engine.export.passes import for_turing
from engine.export.stages import OUTPUTS, stage_graphs
from engine.model import CONFIGS, fuse

pytestmark = pytest.mark.build

SIZE = (64, 96)
PRECISIONS = dict.fromkeys(CONFIGS, ("fp16",)) | {"mobilevos-mobilenetv2": ("fp16", "fp32")}


@pytest.fixture(
    scope="module", params=[(name, p) for name, each in PRECISIONS.items() for p in each], ids=str
)
def exported(request):
    """A network with random weights, two objects: (model, precision, graphs)."""
    name, precision = request.param
    model = fuse(randomised(name, seed=1))
    return model, precision, stage_graphs(model, SIZE, 2, precision)


def raw(graphs: dict[str, onnx.ModelProto]) -> dict[str, bytes]:
    return {stage: graph.SerializeToString() for stage, graph in graphs.items()}


def test_typed_and_static(exported):
    _, precision, graphs = exported
    typed = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    kinds = {
        v.name: v.type.tensor_type.elem_type
        for graph in graphs.values()
        for v in (*graph.graph.input, *graph.graph.output)
    }
    exact = {"probabilities", "scores", "given"}
    assert {kinds[n] for n in exact} == {TensorProto.FLOAT}
    assert {kinds[n] for n in ("use_given", "active")} == {TensorProto.BOOL}
    assert {kinds[n] for n in set(kinds) - exact - {"use_given", "active"}} == {typed}
    for graph in graphs.values():
        for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info):
            assert all(d.dim_value for d in value.type.tensor_type.shape.dim), value.name
        weights = [t for t in graph.graph.initializer if len(t.dims) == 4]
        assert {t.data_type for t in weights} == {typed}
        assert not any(n.metadata_props or n.doc_string for n in graph.graph.node)


def test_every_network_agrees(exported):
    """Random weights: masks mean little, so the free loop is left out; all else must hold."""
    model, precision, graphs = exported
    clip = demo_clip(SIZE, 3)
    found = compare(model, raw(graphs), clip, 2, precision)
    assert found.failures(replace(parity.LIMITS[precision], free_iou=0, forced_iou=0.98)) == []
    assert {stage: set(o) for stage, o in found.stages.items()} == {
        stage: set(OUTPUTS[stage]) for stage in graphs
    }
    assert all(d.max > 0 for outputs in found.stages.values() for d in outputs.values())
    if precision == "fp16":
        assert 0 < found.peak < parity.FP16_MAX / 2


def test_turings_form_agrees(exported):
    model, precision, graphs = exported
    clip = demo_clip(SIZE, 2)
    forms = {stage: for_turing(graph) for stage, graph in graphs.items()}
    found = compare(model, raw(forms), clip, 2, precision)
    assert found.failures(replace(parity.LIMITS[precision], free_iou=0, forced_iou=0.98)) == []


def damaged(graph: onnx.ModelProto, factor: float) -> bytes:
    """The graph with one weight scaled."""
    copy = onnx.ModelProto.FromString(graph.SerializeToString())
    weight = [t for t in copy.graph.initializer if len(t.dims) == 4][-1]
    values = numpy_helper.to_array(weight) * np.float16(factor)
    weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), weight.name))
    return copy.SerializeToString()


@pytest.mark.parametrize("stage", ["encode_query", "decode"])
@pytest.mark.parametrize(("factor", "words"), [(1.5, "differs by"), (np.nan, "not finite")])
@pytest.mark.parametrize("exported", [("mobilevos-mobilenetv2-noaspp", "fp16")], indirect=True)
def test_a_wrong_weight_stops_with_the_figures(exported, stage, factor, words):
    model, precision, graphs = exported
    bad = raw(graphs) | {stage: damaged(graphs[stage], factor)}
    found = compare(model, bad, demo_clip(SIZE, 2), 2, precision)
    with pytest.raises(ModelError, match=words) as caught:
        check(found, "the graph")
    assert f"{stage}." in str(caught.value)


def test_the_limits_each_bite():
    good = parity.Parity("fp16", "clip", 2, peak=100.0)
    assert good.failures() == []
    for change in (
        {"logits": 0.7}, {"logits": float("nan")}, {"forced_iou": 0.9}, {"free_iou": 0.9},
        {"peak": 4e4},
    ):  # fmt: skip
        assert len(replace(good, **change).failures()) == 1, change


@pytest.mark.parametrize("exported", [("mobilevos-mobilenetv2", "fp32")], indirect=True)
def test_the_memory_takes_turns_and_keeps_its_anchor(exported):
    _, _, graphs = exported
    clip = demo_clip(SIZE, 2)
    stages = stage_run.OnnxStages(raw(graphs))
    loop, other = (stage_run.Loop(stages, 2, (24, 64, 64)) for _ in "ab")
    for i, image in enumerate(clip.images):
        loop.remember(loop.frame(image, clip.masks(2, 1, given=i == 0), i == 0), i == 0)
        other.force(loop)
    np.testing.assert_array_equal(loop.keys, other.keys)
    assert loop.keys is not other.keys
    np.testing.assert_array_equal(loop.keys[1], loop.keys[2])  # frame 0
    assert np.ptp(loop.keys[0]) > 0 and not np.array_equal(loop.keys[0], loop.keys[2])


def test_every_fp16_result_is_rounded():
    """Without it ONNX Runtime would carry fp32 from one product to the next."""
    shape = [1, 1, 4, 4]
    x, a, b = (np.float16(v) for v in (1.6064453125, 1.7294921875, 1.5439453125))
    wide = np.float32(x) * np.float32(a)
    want, carried = (np.float16(m * np.float32(b)) for m in (np.float32(np.float16(wide)), wide))
    assert want != carried
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "a"], ["m"]), helper.make_node("Conv", ["m", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, shape)],
        [
            numpy_helper.from_array(np.full((1, 1, 1, 1), w, np.float16), n)
            for n, w in (("a", a), ("b", b))
        ],
        value_info=[helper.make_tensor_value_info("m", TensorProto.FLOAT16, shape)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    stages = stage_run.OnnxStages({"s": made.SerializeToString()})
    (got,) = stages.run("s", {"x": np.full(shape, x)}).values()
    np.testing.assert_array_equal(got, np.full(shape, want))


# Clips


def test_the_clip():
    a, b = demo_clip(SIZE, 3), demo_clip(SIZE, 3)
    assert [x.shape for x in a.images] == [(1, 3, *SIZE)] * 3
    assert all(x.dtype == np.float32 and x.min() >= -1 and x.max() <= 1 for x in a.images)
    assert all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))
    assert not np.array_equal(a.images[0], a.images[1])
    assert 0.02 < a.first.mean() < 0.5 and set(np.unique(a.first)) == {0, 1}


def test_several_objects_do_not_overlap():
    masks = demo_clip(SIZE, 1).masks(4, 3, given=True)
    assert masks["given"].sum(0).max() == 1
    assert [p.any() for p in masks["given"]] == [True, True, True, False]
    assert masks["active"].tolist() == masks["use_given"].tolist() == [True, True, True, False]
    later = demo_clip(SIZE, 1).masks(4, 3, given=False)
    assert not later["use_given"].any() and later["active"].tolist() == masks["active"].tolist()
