"""The build command, whole: weights to a bundle that ``validate`` accepts."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from helpers.engines import needs_rtx

from engine import cli
from engine.build import pipeline as builder
from engine.build import trt
from engine.build.parity import LIMITS
from engine.bundle import load_bundle
from engine.errors import BackendError, MissingExtraError, ModelError
from engine.weights import weights_path

NAME = "mobilevos-mobilenetv2"
SMALL = ["--model", NAME, "--size", "64x96", "--target", "sm_86"]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A real bundle for one target."""
    out = tmp_path_factory.mktemp("bundles")
    assert builder.main([*SMALL, "--fp16", "--out", str(out)]) == 0
    (folder,) = (p for p in out.iterdir() if p.is_dir())
    return folder


@pytest.mark.build
@needs_rtx
def test_the_bundle_holds_what_a_gpu_needs(built):
    bundle = load_bundle(built)
    m = bundle.manifest
    assert built.name == f"{NAME}-64x96-k1-fp16-tensorrt-rtx" == m.name
    assert (m.precision, m.size, m.objects, m.targets) == ("fp16", (64, 96), 1, ("sm_86",))
    assert list(m.stages) == ["encode_query", "decode"]
    for stage in m.stages.values():
        graph = onnx.load(bundle.path(stage.onnx["sm_86"]))
        assert [i.name for i in graph.graph.input] == list(stage.inputs)
        engine = stage.engines["sm_86"]
        assert bundle.path(engine.file).stat().st_size > 100_000
        assert engine.activation_bytes > 0 and engine.weight_bytes > 0
    decode = m.stages["decode"]
    assert decode.inputs["readout"].shape == (1, 24, 64)
    assert decode.inputs["readout"].dtype == decode.outputs["value"].dtype == "float16"
    assert decode.outputs["probabilities"].dtype == decode.outputs["scores"].dtype == "float32"
    assert set(m.kernels["sm_86"]) == {
        "preprocess",
        "memory_read",
        "memory_read_merge",
        "mask_head",
    }
    assert m.parity["sm_86"]["free_iou"] >= LIMITS["fp16"].free_iou
    log = json.loads(built.with_name(f"{built.name}.log.json").read_text())
    assert set(log["seconds"]) == {"export", "parity", "engines", "kernels"}


@pytest.mark.build
@needs_rtx
def test_kernels_can_be_found_as_the_runtime_looks_for_them(built):
    from kernels import launch

    for file in load_bundle(built).manifest.kernels["sm_86"].values():
        name = file.removesuffix(".sm_86.json")
        assert launch.find(built, name, (8, 6)) == built / file
        assert (built / file).with_suffix(".cubin").is_file()


@pytest.mark.build
@needs_rtx
def test_building_again_gives_the_same_hashes(built, tmp_path):
    before = load_bundle(built)
    assert builder.main([*SMALL, "--fp16", "--out", str(tmp_path)]) == 0
    again = load_bundle(tmp_path / built.name)
    assert again.manifest.files == before.manifest.files
    assert again.sha256 == before.sha256


@pytest.mark.build
@needs_rtx
def test_validate(built, capsys):
    sha256 = load_bundle(built).sha256
    assert cli.main(["validate", str(built), "--frames", "2", "--expect-sha256", sha256]) == 0
    said = json.loads((built / "validation.json").read_text())
    figures = said["onnxruntime"]["sm_86"]
    assert said["manifest_sha256"] == sha256 and said["failures"] == []
    assert figures["stages"]["decode"]["value"]["not_finite"] == 0
    assert figures["free_iou"] >= LIMITS["fp16"].free_iou and figures["frames"] == 2
    assert "decode in readout: float16 [1, 24, 64]" in said["boundaries"]
    assert "values that are not finite: 0" in capsys.readouterr().out
    load_bundle(built)

    for arguments, message in (
        (["--expect-sha256", "0" * 64], "not the expected"),
        (["--weights", str(built)], "has no trained weights"),
    ):
        assert cli.main(["validate", str(built), *arguments]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert message in error


@pytest.mark.build
@needs_rtx
def test_validate_with_other_weights(built, tmp_path, capsys):
    for suffix in ("onnx", "safetensors"):
        source = weights_path(NAME).with_suffix(f".{suffix}")
        (tmp_path / source.name).write_bytes(source.read_bytes() + b" ")
    assert cli.main(["validate", str(built), "--weights", str(tmp_path)]) == 2
    assert "built of other weights" in capsys.readouterr().err


@pytest.mark.build
@needs_rtx
def test_a_build_that_does_not_agree_stops_with_the_figures(tmp_path, monkeypatch, capsys):
    strict = replace(LIMITS["fp16"], error=1e-9)
    monkeypatch.setitem(LIMITS, "fp16", strict)
    monkeypatch.setattr(trt, "build_engine", lambda *a: pytest.fail("engines were built"))
    assert builder.main([*SMALL, "--out", str(tmp_path)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "does not agree with PyTorch: encode_query.key differs by" in error and "1e-09" in error
    assert list(tmp_path.iterdir()) == []


@needs_rtx
@pytest.mark.build
def test_one_engine_for_many_sizes(tmp_path):
    options = [*SMALL, "--dynamic", "32x96", "--out", str(tmp_path)]
    assert builder.main(options) == 0
    m = load_bundle(tmp_path / f"{NAME}-64x96-k1-fp16-tensorrt-rtx").manifest
    assert m.dynamic == ((32, 32), (96, 96))
    assert m.stages["encode_query"].inputs["image"].shape == (1, 3, "16h", "16w")


# Without building


@pytest.mark.build
def test_the_layer_report(capsys):
    assert builder.main(["--report", "--model", NAME, "--size", "64x96"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"# {NAME}, 64x96, 1 object(s)")
    for words in (
        "encode_query",
        "read_memory",
        "decode",
        "A40",
        "1080 Ti",
        "transpose",
        "measured",
    ):
        assert words in text


def test_all_models_with_weights_are_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "available", lambda folder: ["a", "b"])
    monkeypatch.setattr(builder, "find", lambda name, folder: None)
    assert builder._models(builder.Options()) == ("a", "b")
    monkeypatch.setattr(builder, "available", lambda folder: [])
    with pytest.raises(ModelError, match="no trained weights"):
        builder._models(builder.Options())


@pytest.mark.parametrize("package", builder.NEEDS)
def test_a_missing_package_names_the_extra(monkeypatch, package):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == package else real(n, *a)
    )
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*\[build\]"):
        builder.build(builder.Options())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--fp16", "--fp32"],
        ["--size", "480"],
        ["--size", "480x850"],
        ["--size", "16x32"],
        ["--objects", "0"],
        ["--objects", "256"],
        ["--dynamic", "96x64"],
        ["--size", "64x96", "--dynamic", "64x80"],
        ["--model", "nonesuch"],
        ["--runtime", "cudnn"],
    ],
    ids=" ".join,
)
def test_bad_options(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        builder.main(arguments)
    assert exit_.value.code == 2 and "error: " in capsys.readouterr().err


@needs_rtx
def test_bad_targets_are_one_line(capsys):
    assert builder.main(["--target", "sm_61"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: TensorRT for RTX does not build for 'sm_61'")


def test_kernels_of_a_bundle():
    with pytest.raises(BackendError, match="onnx-cuda"):
        builder.cubins("fp16", ("sm_70",), 1, (64, 64))
