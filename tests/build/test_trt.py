"""Engines: what is said to TensorRT in both runtimes, and real builds of small graphs."""

from __future__ import annotations

import importlib.util
import sys
import types
from hashlib import sha256

import numpy as np
import onnx
import pytest
from helpers.engines import needs_rtx
from onnx import helper, numpy_helper

from engine.build import targets, trt
from engine.errors import BackendError, InputError, MissingExtraError


def conv(channels: int = 8, out: int = 8, groups: int = 1, dtype=np.float16) -> bytes:
    """A 3×3 convolution on [1, channels, 16, 16], with two outputs."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weight = np.linspace(-1, 1, out * (channels // groups) * 9).astype(dtype)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4, group=groups),
            helper.make_node("Relu", ["y"], ["z"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", kind, [1, channels, 16, 16])],
        [helper.make_tensor_value_info(n, kind, [1, out, 16, 16]) for n in "yz"],
        [numpy_helper.from_array(weight.reshape(out, channels // groups, 3, 3), "w")],
    )
    return model(graph)


def model(graph: onnx.GraphProto) -> bytes:
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return made.SerializeToString()


def product(dtype=np.float32) -> bytes:
    """A matrix product."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "g",
        [helper.make_tensor_value_info(n, kind, [64, 64]) for n in "ab"],
        [helper.make_tensor_value_info("c", kind, [64, 64])],
    )
    return model(graph)


# Real builds with TensorRT for RTX


@pytest.mark.build
@needs_rtx
def test_a_real_engine_and_the_same_bytes_again():
    first, second = (trt.build_engine("tensorrt-rtx", conv(), ("sm_86",), "fp16") for _ in "ab")
    assert len(first.data) > 1000 and first.seconds > 0
    assert sha256(first.data).digest() == sha256(second.data).digest()
    assert first.weight_bytes > 0 and first.activation_bytes >= 0


@pytest.mark.build
@needs_rtx
def test_one_engine_for_several_targets():
    plan = trt.build_engine("tensorrt-rtx", conv(), ("sm_80", "sm_86", "sm_89", "sm_120"), "fp16")
    assert len(plan.data) > 1000


@pytest.mark.build
@needs_rtx
@pytest.mark.parametrize(
    ("graph", "target", "reason"),
    [
        (product(), "sm_75", "FP32 GEMM is not supported"),
        (b"not an onnx graph", "sm_86", "parse"),
    ],
    ids=["fp32 product on Turing", "noise"],
)
def test_a_refusal_is_one_line_with_tensorrts_reason(graph, target, reason):
    with pytest.raises(BackendError, match=reason) as caught:
        trt.build_engine("tensorrt-rtx", graph, (target,), "fp32")
    assert "\n" not in str(caught.value) and target in str(caught.value)


# What there is, and what is asked for


def test_targets_of_rtx(monkeypatch):
    def here(target):
        monkeypatch.setattr(targets, "device_target", lambda: target)

    here(None)
    assert targets.choose_targets("tensorrt-rtx", None)[0] == targets.RTX_TARGETS
    assert targets.choose_targets("tensorrt-rtx", ["sm_89", "sm_80"])[0] == ("sm_80", "sm_89")
    here("sm_86")
    assert targets.choose_targets("tensorrt-rtx", None)[0] == ("sm_86",)
    with pytest.raises(InputError, match=r"does not build for 'sm_90'.*--runtime tensorrt"):
        targets.choose_targets("tensorrt-rtx", ["sm_90"])
    here("sm_90")
    with pytest.raises(InputError, match="sm_90"):
        targets.choose_targets("tensorrt-rtx", None)


def test_targets_of_the_full_tensorrt(monkeypatch):
    monkeypatch.setattr(targets, "device_target", lambda: None)
    with pytest.raises(BackendError, match="--runtime tensorrt-rtx"):
        targets.choose_targets("tensorrt", None)
    monkeypatch.setattr(targets, "device_target", lambda: "sm_90")
    assert targets.choose_targets("tensorrt", None)[0] == ("sm_90",)
    assert targets.choose_targets("tensorrt", ["sm_90"])[0] == ("sm_90",)
    with pytest.raises(InputError, match="sm_90, only"):
        targets.choose_targets("tensorrt", ["sm_86"])


def test_turing_has_an_engine_of_its_own():
    assert targets.engine_groups(("sm_75", "sm_80", "sm_86")) == [("sm_80", "sm_86"), ("sm_75",)]
    assert targets.engine_groups(("sm_75",)) == [("sm_75",)]


@pytest.mark.parametrize(
    ("installed", "gpu", "chosen"),
    [
        (["tensorrt_rtx"], None, "tensorrt-rtx"),
        (["tensorrt"], "sm_86", "tensorrt"),
        (["tensorrt", "tensorrt_rtx"], None, "tensorrt-rtx"),
        (["tensorrt", "tensorrt_rtx"], "sm_86", "tensorrt"),
    ],
)
def test_the_default_runtime(monkeypatch, installed, gpu, chosen):
    monkeypatch.setattr(targets, "device_target", lambda: gpu)
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: n if n in installed else None)
    assert targets.choose_runtime(None)[0] == chosen
    assert targets.choose_runtime(chosen) == (chosen, "asked for")


def test_a_missing_runtime_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in (None, *targets.MODULES):
        with pytest.raises(MissingExtraError, match=r"pip install '\.\[gpu\]'"):
            targets.choose_runtime(name)
    with pytest.raises(InputError, match="unknown runtime"):
        targets.choose_runtime("cudnn")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match="tensorrt_rtx"):
        targets.load("tensorrt-rtx")


@pytest.mark.parametrize(
    ("version", "fits"), [("10.11.0", False), ("10.12.0.36", True), ("11.2", True)]
)
def test_the_oldest_full_tensorrt(monkeypatch, version, fits):
    module = types.ModuleType("tensorrt")
    module.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    if fits:
        assert targets.load("tensorrt") is module
    else:
        with pytest.raises(BackendError, match=r"10\.12 or newer"):
            targets.load("tensorrt")


# What the full TensorRT is told, by a stand-in: it cannot be installed where the tests run


class Recorder:
    """An object whose calls are written down as ``name(arguments)``."""

    def __init__(self, calls: list[tuple[str, tuple]], answers: dict[str, object]) -> None:
        self.__dict__.update(_calls=calls, _answers=answers)

    def __setattr__(self, name: str, value: object) -> None:
        self._calls.append((name, (value,)))

    def __getattr__(self, name: str):
        def call(*args: object) -> object:
            self._calls.append((name, args))
            return self._answers.get(name, Recorder(self._calls, self._answers))

        return call


def stand_in(calls: list, strongly_typed: bool, **answers: object) -> types.SimpleNamespace:
    """A TensorRT that records. STRONGLY_TYPED is gone in some version to come."""

    class ILogger:
        Severity = types.SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, INFO=3)

        def __init__(self) -> None:
            pass

    fake = Recorder(calls, {"parse": True, "build_serialized_network": b"plan"} | answers)

    def builder(log: object) -> Recorder:
        if "error" in answers:
            log.log(1, answers["error"])
        log.log(3, "Total Activation Memory: 4711 bytes")
        return fake

    return types.SimpleNamespace(
        ILogger=ILogger,
        Builder=builder,
        OnnxParser=lambda network, log: fake,
        NetworkDefinitionCreationFlag=types.SimpleNamespace(
            **({"STRONGLY_TYPED": 1} if strongly_typed else {})
        ),
        BuilderFlag=types.SimpleNamespace(TF32="TF32"),
    )


@pytest.mark.parametrize("strongly_typed", [True, False])
def test_the_full_tensorrt_is_told_of_types_and_its_timing_cache(tmp_path, strongly_typed):
    calls: list = []
    cache = tmp_path / "caches" / "timing.bin"
    saved = types.SimpleNamespace(serialize=lambda: b"timings")
    module = stand_in(calls, strongly_typed, get_timing_cache=saved)
    plan = trt.build_in_this_process(module, "tensorrt", b"graph", ("sm_90",), "fp32", None, cache)
    assert plan.data == b"plan" and plan.activation_bytes == 4711 and plan.weight_bytes == 0
    said = dict(calls)
    assert said["create_network"] == (2 if strongly_typed else 0,)
    assert said["parse"] == (b"graph",)
    assert said["clear_flag"] == ("TF32",)
    assert said["create_timing_cache"] == (b"",)
    assert "set_compute_capability" not in said and "set_flag" not in said
    assert cache.read_bytes() == b"timings"

    calls.clear()
    trt.build_in_this_process(module, "tensorrt", b"graph", ("sm_90",), "fp16", None, cache)
    assert dict(calls)["create_timing_cache"] == (b"timings",)
    assert "clear_flag" not in dict(calls)


def test_a_profile_is_told():
    calls: list = []
    profile = {"image": ((1, 3, 32, 32), (1, 3, 64, 64), (1, 3, 96, 96))}
    trt.build_in_this_process(stand_in(calls, True), "tensorrt", b"g", ("sm_90",), "fp16", profile)
    assert dict(calls)["set_shape"] == ("image", *profile["image"])
    assert "add_optimization_profile" in dict(calls)


def test_a_failed_build_gives_the_first_error():
    module = stand_in([], True, build_serialized_network=None, error="no tactic\nfor this")
    with pytest.raises(BackendError, match="^no tactic for this$"):
        trt.build_in_this_process(module, "tensorrt", b"g", ("sm_90",), "fp16")
