"""Which backend runs, and what is said where one cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from engine import runtime
from engine.errors import BackendError
from engine.runtime import ort as ort_source
from engine.runtime.gpu import driver, program
from engine.segmenter import Segmenter
from engine.weights import graph_path

MODEL = "mobilevos-mobilenetv2"


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def need_driver() -> None:
        raise BackendError("no driver")

    monkeypatch.setattr(program, "need_driver", need_driver)
    monkeypatch.setattr(ort_source, "need_driver", need_driver)


def test_auto_is_the_cpu_without_a_gpu_and_says_so_once(no_driver):
    name, why = runtime.choose("auto", MODEL)
    assert name == "cpu"
    assert why.endswith("(not tensorrt, tensorrt-rtx, onnx-cuda: no driver)")
    told = runtime.status(MODEL)
    assert list(told) == list(runtime.BACKENDS)
    assert told["cpu"] == "" and told["tensorrt"] == "no driver"


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "onnx-cuda"])
def test_a_backend_that_was_asked_for_is_not_replaced(name, monkeypatch):
    try:
        driver.need_driver()
    except BackendError:
        with pytest.raises(BackendError, match="no NVIDIA driver"):
            Segmenter.load(MODEL, name)
    else:
        pytest.skip("there is a driver here")


def test_what_is_missing_is_named_with_the_command_that_brings_it(monkeypatch, tmp_path):
    monkeypatch.setattr(program, "need_driver", lambda: None)
    monkeypatch.setattr(ort_source, "need_driver", lambda: None)
    monkeypatch.setattr(program, "find_module", lambda name: False)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    told = runtime.status(MODEL, tmp_path)
    assert "'tensorrt_rtx', which is not installed" in told["tensorrt-rtx"]
    assert "pip install '.[gpu]'" in told["tensorrt-rtx"]
    assert "pip uninstall -y onnxruntime && pip install onnxruntime-gpu" in told["onnx-cuda"]
    assert "onnxruntime-gpu==1.22.1" in told["onnx-cuda"]


class FakeSession:
    """ONNX Runtime's CPU session, which says that it runs on ``started``, or as it was asked."""

    started: tuple[str, ...] = ()
    asked: tuple[list[str], ...] = ()

    def __init__(self, path: Any, options: Any, providers: list[str]) -> None:
        FakeSession.asked = (*self.asked, providers)
        self.providers = providers
        real = REAL(path, options, providers=["CPUExecutionProvider"])
        self.get_inputs, self.io_binding = real.get_inputs, real.io_binding
        self.run_with_iobinding, self.get_outputs = real.run_with_iobinding, real.get_outputs

    def get_providers(self) -> list[str]:
        return list(self.started) or self.providers


REAL = ort.InferenceSession
CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_onnx_cuda_is_the_cpu_graph_on_the_cuda_provider(monkeypatch):
    monkeypatch.setattr(ort_source, "need_driver", lambda: None)
    monkeypatch.setattr(ort, "get_available_providers", lambda: CUDA)
    monkeypatch.setattr(ort, "InferenceSession", FakeSession)
    frame = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    mask = np.zeros((64, 96), np.uint8)
    mask[20:40, 20:50] = 3
    with Segmenter.load(MODEL, "onnx-cuda") as seg, Segmenter.load(MODEL, "cpu") as cpu:
        assert seg.backend == "onnx-cuda"
        np.testing.assert_array_equal(seg.start(frame, mask), cpu.start(frame, mask))
        assert FakeSession.asked == (CUDA, ["CPUExecutionProvider"])
        np.testing.assert_array_equal(seg.step(frame), cpu.step(frame))
    # It falls back to the CPU, slowly and without an error, where its libraries are missing.
    monkeypatch.setattr(FakeSession, "started", ("CPUExecutionProvider",))
    with pytest.raises(BackendError, match="could not start its CUDA provider"):
        ort_source.OrtBackend(graph_path(MODEL), 1, "onnx-cuda")
