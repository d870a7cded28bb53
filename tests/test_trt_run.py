"""Engines run for a comparison, on stand-ins: host memory for the GPU's, ONNX Runtime for engines.

The calls are checked against the real classes; that a GPU answers as the stand-ins do is not.
"""

from __future__ import annotations

import ctypes
import importlib.util
import types
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from test_bundle import MANIFEST
from test_trt import conv, needs_rtx

from engine import bundle as bundles
from engine.build import targets
from engine.build.trt_run import EngineStages
from engine.bundle import Engine, Stage, Tensor
from engine.errors import BackendError

pytest.importorskip("cuda.bindings")
SHAPE = (1, 8, 16, 16)


@pytest.fixture
def bundle(tmp_path):
    """One stage, the graph of ``conv``."""
    half = Tensor("float16", SHAPE)
    stage = Stage({"x": half}, {"y": half, "z": half}, {"sm_86": "g.onnx"}, {})
    stage = replace(stage, engines={"sm_86": Engine("g.engine", 512, 0)})
    manifest = replace(MANIFEST, stages={"decode": stage}, kernels={})
    files = {"g.onnx": conv(), "g.engine": conv()}
    return bundles.load_bundle(bundles.write_bundle(tmp_path, manifest, files))


class Cuda:
    """cuda.bindings.runtime on host memory; ``fail`` names a call that gives an error."""

    def __init__(self, fail: str = "") -> None:
        self.live: dict[int, ctypes.Array] = {}
        self.streams = 0
        self.fail = fail
        self.cudaMemcpyKind = types.SimpleNamespace(
            cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2
        )

    def _answer(self, name: str, *values: object) -> tuple:
        class Error(int):
            name = "cudaErrorMemoryAllocation"

        return (Error(2 if name == self.fail else 0), *values)

    def cudaStreamCreate(self):
        self.streams += 1
        return self._answer("cudaStreamCreate", 7)

    def cudaStreamDestroy(self, stream):
        self.streams -= 1
        return self._answer("cudaStreamDestroy")

    def cudaStreamSynchronize(self, stream):
        return self._answer("cudaStreamSynchronize")

    def cudaMalloc(self, size):
        if self.fail == "cudaMalloc":
            return self._answer("cudaMalloc", 0)
        block = ctypes.create_string_buffer(b"\xff" * size, size)  # NaN, until it is written
        self.live[ctypes.addressof(block)] = block
        return self._answer("cudaMalloc", ctypes.addressof(block))

    def cudaFree(self, address):
        del self.live[address]
        return self._answer("cudaFree")

    def cudaMemcpy(self, to, source, size, kind):
        device = to if kind == 1 else source
        assert size <= len(self.live[device])
        ctypes.memmove(to, source, size)
        return self._answer("cudaMemcpy")


def tensorrt(cuda: Cuda, loads: bool = True, runs: bool = True) -> types.SimpleNamespace:
    """The classes of a TensorRT that are in use."""

    class Context:
        def __init__(self, session):
            self.session, self.at, self.memory = session, {}, None

        def set_device_memory(self, address, size):
            assert size <= len(cuda.live[address])
            self.memory = address

        def set_tensor_address(self, name, address):
            self.at[name] = address
            return True

        def get_tensor_shape(self, name):
            return SHAPE

        def execute_async_v3(self, stream):
            assert stream == 7 and self.memory in cuda.live
            x = np.frombuffer(cuda.live[self.at["x"]], np.float16).reshape(SHAPE)
            for name, array in zip("yz", self.session.run(["y", "z"], {"x": x}), strict=True):
                ctypes.memmove(self.at[name], array.ctypes.data, array.nbytes)
            return runs

    class Built:
        device_memory_size_v2 = 512

        def __init__(self, data):
            self.session = ort.InferenceSession(data)

        def create_execution_context(self, strategy):
            assert strategy == "user"
            return Context(self.session)

    class Runtime:
        def __init__(self, log):
            pass

        def deserialize_cuda_engine(self, data):
            return Built(data) if loads else None

    return types.SimpleNamespace(
        __name__="tensorrt_rtx",
        __version__="9",
        Runtime=Runtime,
        Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None}),
        ExecutionContextAllocationStrategy=types.SimpleNamespace(USER_MANAGED="user"),
    )


@pytest.fixture
def stand_ins(monkeypatch):
    def use(cuda: Cuda, **options: bool) -> Cuda:
        module = tensorrt(cuda, **options)
        monkeypatch.setattr(targets, "load", lambda runtime: module)
        monkeypatch.setattr("cuda.bindings.runtime", cuda)
        return cuda

    return use


def test_a_stage_runs_and_everything_is_released(bundle, stand_ins, rng):
    cuda = stand_ins(Cuda())
    x = rng.normal(size=SHAPE)
    want = ort.InferenceSession(conv()).run(["y", "z"], {"x": x.astype(np.float16)})
    with EngineStages(bundle, "sm_86") as stages:
        assert not stages.one_graph
        for _ in range(3):
            got = stages.run("decode", {"x": x, "unused": x})
            assert list(got) == ["y", "z"]
            for a, b in zip(want, got.values(), strict=True):
                np.testing.assert_array_equal(a, b)
        assert len(cuda.live) == 1  # the engine's own memory
    assert cuda.live == {} and cuda.streams == 0
    stages.close()


@pytest.mark.parametrize(
    ("fail", "options", "message"),
    [
        ("cudaMalloc", {}, "cudaErrorMemoryAllocation"),
        ("cudaMemcpy", {}, "nvidia-smi"),
        ("", {"loads": False}, "does not load with tensorrt_rtx 9.*python -m engine.build"),
        ("", {"runs": False}, "does not run"),
    ],
)
def test_errors_release_everything(bundle, stand_ins, fail, options, message):
    cuda = stand_ins(Cuda(fail), **options)
    with (
        pytest.raises(BackendError, match=message),
        EngineStages(bundle, "sm_86") as stages,
    ):
        stages.run("decode", {"x": np.zeros(SHAPE)})
    assert cuda.live == {} and cuda.streams == 0


@needs_rtx
def test_the_calls_exist_in_the_real_classes():
    real = importlib.import_module("tensorrt_rtx")
    for owner, names in {
        real.Runtime: ["deserialize_cuda_engine"],
        real.ICudaEngine: ["create_execution_context", "device_memory_size_v2"],
        real.IExecutionContext: [
            "set_device_memory", "set_tensor_address", "get_tensor_shape", "set_input_shape",
            "execute_async_v3",
        ],
        real.ExecutionContextAllocationStrategy: ["USER_MANAGED"],
    }.items():  # fmt: skip
        assert [n for n in names if not hasattr(owner, n)] == []
    cudart = importlib.import_module("cuda.bindings.runtime")
    used = [n for n in vars(Cuda) if n.startswith("cuda")]
    assert len(used) == 6 and all(callable(getattr(cudart, n)) for n in used)
