"""The exporter: what the files hold, that they are the network, and that they are reproducible."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from helpers.networks import randomised
from onnx import TensorProto

from engine.errors import ModelError
from engine.export import __main__ as command
from engine.export import exporter
from engine.export.files import export, externalise
from engine.export.step import step_graph
from engine.geometry import Geometry
from engine.model import CONFIGS, load
from engine.runtime.base import StepInput
from engine.runtime.ort import OrtBackend
from engine.runtime.reference import ReferenceBackend
from engine.weights import FOLDER, SUMS, available, graph_path, short_hash, weights_path

SHIPPED = available()

INPUTS = {
    "frame": (TensorProto.UINT8, ["h", "w", 3]),
    "keys": (TensorProto.FLOAT, ["S", "N", 64]),
    "values": (TensorProto.FLOAT, ["S", "K", "N", 64]),
    "slots": (TensorProto.INT32, ["G", "R"]),
    "given": (TensorProto.FLOAT, ["K", "16*h16", "16*w16"]),
    "use_given": (TensorProto.BOOL, ["K"]),
    "output_size": (TensorProto.INT64, [2]),
    "labels": (TensorProto.UINT8, ["P"]),
}
OUTPUTS = {
    "mask": (TensorProto.UINT8, 2),
    "probabilities": (TensorProto.FLOAT, 3),
    "key": (TensorProto.FLOAT, 2),
    "value": (TensorProto.FLOAT, 3),
    "logits": (TensorProto.FLOAT, 3),
    "scores": (TensorProto.FLOAT, 2),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.build) for name in CONFIGS],
)
def exported(request, tmp_path_factory) -> tuple[str, Path]:
    """A network with random weights, exported: its name and the folder of its two files."""
    folder = tmp_path_factory.mktemp(request.param)
    export(randomised(request.param, seed=1), request.param, folder)
    return request.param, folder


@pytest.fixture
def graph(exported) -> onnx.ModelProto:
    """The graph without its external weights."""
    return onnx.load(graph_path(*exported), load_external_data=False)


def dimensions(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_two_files_that_onnx_accepts(exported):
    name, folder = exported
    assert {p.name for p in folder.iterdir()} == {f"{name}.onnx", f"{name}.safetensors", SUMS}
    onnx.checker.check_model(str(graph_path(name, folder)), full_check=True)


def test_declared_inputs_and_outputs(exported, graph):
    width = CONFIGS[exported[0]].value_dim
    inputs = {i.name: (i.type.tensor_type.elem_type, dimensions(i)) for i in graph.graph.input}
    assert inputs == INPUTS | {"values": (TensorProto.FLOAT, ["S", "K", "N", width])}
    outputs = {
        o.name: (o.type.tensor_type.elem_type, len(dimensions(o))) for o in graph.graph.output
    }
    assert outputs == OUTPUTS
    assert not any(
        isinstance(d, int) and d not in (64, width, 2)
        for o in graph.graph.output
        for d in dimensions(o)
    ), "only the widths of key, value and scores are fixed"
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", exporter.OPSET)]


def test_no_trace_of_the_machine_it_was_made_on(exported, graph):
    raw = graph_path(*exported).read_bytes()
    for word in (str(Path.home()), str(Path.cwd()), "site-packages", ".py", "Traceback", "File "):
        assert word.encode() not in raw, word
    assert not any(n.metadata_props or n.doc_string for n in graph.graph.node)
    assert not graph.metadata_props and not graph.functions


def test_weights_are_shared_with_the_safetensors_file(exported, graph):
    name, folder = exported
    raw = weights_path(name, folder).read_bytes()
    head = int.from_bytes(raw[:8], "little")
    index = json.loads(raw[8 : 8 + head])
    used = set()
    for tensor in graph.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            assert tensor.ByteSize() < 4096, f"'{tensor.name}' is inside the graph"
            continue
        place = {e.key: e.value for e in tensor.external_data}
        stored = index[tensor.name.removesuffix(".fp16")]
        begin, end = stored["data_offsets"]
        assert place["location"] == f"{name}.safetensors", "relative: the folder can be moved"
        assert int(place["offset"]) == 8 + head + begin
        assert int(place["length"]) == end - begin
        assert (tensor.data_type, stored["dtype"]) == (TensorProto.FLOAT16, "F16")
        assert list(tensor.dims) == stored["shape"]
        used.add(tensor.name.removesuffix(".fp16"))
    # The last convolution's few weights lie in the graph, in the order of a transposed one.
    own = {"__metadata__", "decode.predict.weight"}
    assert used == index.keys() - own, "all others, and none twice"


def step_both(backends, rng, height, width, objects, reads):
    """One step with the same random memory in both; returns what they made of it."""
    padded = (height + -height % 16, width + -width % 16)
    geometry = Geometry((height, width), (height, width), padded)
    keys = rng.normal(0, 1, (4, geometry.tokens, 64)).astype(np.float32)
    value_dim = backends[0].model.config.value_dim
    values = rng.normal(0, 1, (4, objects, geometry.tokens, value_dim)).astype(np.float32)
    task = StepInput(
        frame=rng.integers(0, 256, (height, width, 3), np.uint8),
        slots=rng.choice([-1, 1, 2, 3], (objects, reads)).astype(np.int32),
        labels=np.array([0, *rng.choice(np.arange(1, 256), objects, False)], np.uint8),
        write=0,
        given=(rng.random((objects, *padded)) < 0.5).astype(np.float32),
        use_given=rng.random(objects) < 0.3,
    )
    for backend in backends:
        backend.open(geometry)
        poisoned = keys.copy(), values.copy()
        poisoned[0][0], poisoned[1][0] = np.nan, np.nan
        backend.import_memory(*poisoned)
        mask = backend.step(task)
        soft, scores = backend.probabilities().copy(), backend.scores().copy()
        yield mask, soft, *(x[0] for x in backend.export_memory()), scores


@pytest.mark.parametrize(("height", "width", "objects", "reads"), [
    (64, 96, 2, 2), (33, 50, 1, 1), (16, 16, 3, 3), (80, 47, 5, 2),
])  # fmt: skip
def test_onnx_runtime_equals_pytorch(
    exported, rng, monkeypatch, height, width, objects, reads
):  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    name, folder = exported
    reference = ReferenceBackend(load(name, weights_path(name, folder)))
    backends = reference, OrtBackend(graph_path(name, folder), 1)
    a, b = step_both(backends, rng, height, width, objects, reads)
    (mask_a, soft_a, key_a, value_a, scores_a), (mask_b, soft_b, key_b, value_b, scores_b) = a, b
    np.testing.assert_allclose(scores_b, scores_a, rtol=1e-4)
    p = soft_a[1:].astype(np.float64)
    np.testing.assert_allclose(scores_a, np.stack([p.mean((1, 2)), (p**2).mean((1, 2))], 1), 1e-5)
    np.testing.assert_allclose(soft_b, soft_a, atol=1e-4)
    np.testing.assert_allclose(key_b, key_a, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(value_b, value_a, atol=1e-3, rtol=1e-3)
    top = np.sort(soft_a[:, :height, :width], axis=0)
    assert (mask_a == mask_b)[top[-1] - top[-2] > 1e-3].all()


@pytest.mark.parametrize("objects", [1, 4])
def test_logits_equal_pytorchs(exported, rng, objects):
    name, folder = exported
    model = load(name, weights_path(name, folder))
    session = ort.InferenceSession(graph_path(name, folder), providers=["CPUExecutionProvider"])
    height, width = (int(x) * 16 for x in rng.integers(1, 6, 2))
    n = height * width // 256
    inputs = {
        "frame": rng.integers(0, 256, (height, width, 3), np.uint8),
        "keys": rng.normal(0, 1, (2, n, 64)).astype(np.float32),
        "values": rng.normal(0, 1, (2, objects, n, model.config.value_dim)).astype(np.float32),
        "slots": np.tile(np.array([1, 0], np.int32), (objects, 1)),
        "given": np.zeros((objects, height, width), np.float32),
        "use_given": np.zeros(objects, np.bool_),
        "output_size": np.array([height, width]),
        "labels": np.arange(objects + 1, dtype=np.uint8),
    }
    (logits,) = session.run(["logits"], inputs)
    with torch.inference_mode():
        image = torch.from_numpy(inputs["frame"]).permute(2, 0, 1)[None] / 127.5 - 1
        key, features = model.encode_query(image)
        memory = (torch.from_numpy(inputs[x]) for x in ("keys", "values", "slots"))
        want = model.decode(model.read_memory(key[0], *memory), features).numpy()
    assert logits.shape == want.shape and np.ptp(want) > 1e-3
    np.testing.assert_allclose(logits, want, atol=1e-3)


@pytest.mark.build
@pytest.mark.parametrize("exported", ["mobilevos-mobilenetv2-noaspp"], indirect=True)
def test_exporting_twice_gives_the_same_bytes(exported, tmp_path):
    name, folder = exported
    export(randomised(name, seed=1), name, tmp_path)
    for path in (weights_path, graph_path):
        assert short_hash(path(name, tmp_path)) == short_hash(path(name, folder))


@pytest.mark.build
@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_graph_is_that_of_the_shipped_weights(name):
    """Whoever changes the network or the exporter must export again: python -m engine.export."""
    graph = step_graph(load(name, weights_path(name)))
    externalise(graph, weights_path(name))
    assert graph.SerializeToString() == graph_path(name).read_bytes()


def test_the_graph_finds_its_weights_in_another_folder(exported, tmp_path):
    name, folder = exported
    for path in (weights_path, graph_path):
        path(name, tmp_path).write_bytes(path(name, folder).read_bytes())
    OrtBackend(graph_path(name, tmp_path), 1).close()
    weights_path(name, tmp_path).unlink()
    with pytest.raises(ModelError, match="the weights beside it cannot be loaded"):
        OrtBackend(graph_path(name, tmp_path), 1)


# Refusals


@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_a_weight_that_does_not_fit_fp16(tmp_path, value):
    name = "mobilevos-mobilenetv2-noaspp"
    model = randomised(name)
    with torch.no_grad():
        model.decode.predict.weight[0, 0, 0, 0] = value
    with pytest.raises(ModelError, match="does not fit into fp16"):
        export(model, name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_changed_weight_is_not_passed_off_as_the_stored_one():
    name = SHIPPED[0]
    graph = onnx.ModelProto()
    index = json.loads(weights_path(name).read_bytes()[8:][: header(weights_path(name))])
    weight = "decode.predict.bias"
    shape = index[weight]["shape"]
    graph.graph.initializer.append(
        onnx.numpy_helper.from_array(np.full(shape, 123.0, np.float32), f"model.{weight}")
    )
    with pytest.raises(ModelError, match=r"changed the weight 'decode.predict.bias'"):
        externalise(graph, weights_path(name))


def header(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[:8], "little")


@pytest.mark.build
def test_the_command(tmp_path, monkeypatch, capsys):
    """The EMA weights of a checkpoint are what is exported."""
    name = "mobilevos-mobilenetv2-noaspp"
    model = randomised(name)
    other = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    torch.save({"model": other, "ema": model.state_dict(), "step": 7}, tmp_path / "checkpoint.pt")
    got = {}

    def export(model, name, folder):
        got.update(model.state_dict())
        folder.mkdir()
        weights_path(name, folder).write_bytes(b"w")
        graph_path(name, folder).write_bytes(b"g")

    monkeypatch.setattr(command, "export", export)
    options = ["--model", name, "--out", str(tmp_path / "out")]
    assert command.main([str(tmp_path / "checkpoint.pt"), *options]) == 0
    assert all(torch.equal(v, got[k]) for k, v in model.state_dict().items())
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("damage", ["missing", "noise", "no ema", "another network"])
def test_the_commands_errors_are_one_line(tmp_path, capsys, damage):
    path = tmp_path / "checkpoint.pt"
    if damage == "noise":
        path.write_bytes(b"\x00\x93noise" * 99)
    elif damage == "no ema":
        torch.save({"step": 1}, path)
    elif damage == "another network":
        torch.save({"ema": {"x": torch.zeros(1)}}, path)
    assert command.main([str(path), "--out", str(tmp_path / "out")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and "checkpoint.pt" in error
    assert not (tmp_path / "out").exists()
    assert FOLDER.is_dir()
