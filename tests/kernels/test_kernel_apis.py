"""The public operations: what they refuse and how, what they choose, what they import."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers import ROOT
from helpers.interpreted import Interpreter

from kernels.mask_head import mask_head
from kernels.memory_read import memory_read
from kernels.memory_read.reference import memory_read_reference
from kernels.preprocess import preprocess


def read_arguments(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        "query": torch.randn(6, 32, dtype=dtype),
        "keys": torch.randn(2, 6, 32, dtype=dtype),
        "values": torch.randn(2, 1, 6, 64, dtype=dtype),
        "slots": torch.tensor([[0, 1]], dtype=torch.int32),
    }


BAD_FOR_ALL = [
    ("query", [1.0], "query must be a tensor [N, Ck], got list"),
    ("query", torch.randn(6), "query must be [N, Ck], got shape [6]"),
    ("query", torch.zeros(6, 32, dtype=torch.int32), "query must be float16 or bfloat16"),
    ("keys", torch.randn(2, 6, 32).half(), "keys must be float32, got float16"),
    ("keys", torch.randn(2, 6, 16), "keys must be [S, N, Ck] = [2, 6, 32], got [2, 6, 16]"),
    ("keys", torch.randn(2, 5, 32), "keys must be [S, N, Ck] = [2, 6, 32], got [2, 5, 32]"),
    ("keys", torch.randn(2, 6, 32, device="meta"), "keys must be on cpu as query is, got meta"),
    ("values", torch.randn(2, 1, 5, 64), "values must be [S, K, N, Cv] = [2, 1, 6, 64]"),
    ("slots", torch.zeros(1, 2), "slots must be int32 or int64, got float32"),
    ("slots", torch.zeros(3, 2, dtype=torch.int32), "slots must be [K, R] with K = 1 as in values"),
    ("slots", torch.zeros(1, 0, dtype=torch.int32), "the memory is empty: R must be at least 1"),
    ("slots", torch.tensor([[0, 2]], dtype=torch.int32), "slots must lie in -1…1 (S = 2), got 2"),
    ("slots", torch.tensor([[0, -2]], dtype=torch.int32), "got -2"),
    ("out", torch.zeros(1, 6, 32), "out must be [K, N, Cv] = [1, 6, 64], got [1, 6, 32]"),
    ("out", torch.zeros(1, 64, 6).mT, "out must be contiguous, got strides [384, 1, 6]"),
    ("impl", "fast", "impl must be 'auto', 'reference' or 'triton', got 'fast'"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_FOR_ALL)
def test_memory_read_refuses(name: str, value: Any, message: str) -> None:
    arguments = read_arguments() | {name: value}
    with pytest.raises(ValueError) as caught:
        memory_read(**arguments)
    assert str(caught.value).startswith("memory_read: ")
    assert message in str(caught.value)


def test_an_empty_memory_is_refused() -> None:
    arguments = read_arguments()
    arguments |= {"keys": torch.zeros(0, 6, 32), "values": torch.zeros(0, 1, 6, 64)}
    with pytest.raises(ValueError, match="the memory is empty: S must be at least 1, got 0"):
        memory_read(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": torch.randn(2, 32, 6).mT}, "keys must be contiguous, got strides [192, 1, 6]"),
        ({"query": torch.randn(6, 64)[:, ::2]}, "query must be contiguous"),
        ({"query": torch.randn(6, 32, requires_grad=True)}, "query requires grad"),
        (
            {"query": torch.randn(6, 48), "keys": torch.randn(2, 6, 48)},
            "Ck must be 32, 64 or 128, got 48",
        ),
        ({"values": torch.randn(2, 1, 6, 96)}, "Cv must be a multiple of 64 up to 512, got 96"),
        ({"values": torch.randn(2, 1, 6, 576)}, "Cv must be a multiple of 64 up to 512, got 576"),
        (read_arguments(torch.bfloat16), "query must be float16 or float32, got bfloat16"),
        (read_arguments(torch.float64), "query must be float16 or float32, got float64"),
    ],
)
def test_the_kernel_refuses(
    interpreter: Interpreter, changes: dict[str, Any], message: str
) -> None:
    assert message in interpreter.error("memory_read", **(read_arguments() | changes))


def test_the_kernel_accepts_good_arguments(interpreter: Interpreter) -> None:
    """The control of the test above: nothing else in its arguments is refused."""
    assert interpreter.error("memory_read", **read_arguments()) == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_triton_on_the_cpu_needs_the_interpreter() -> None:
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1"):
        memory_read(**read_arguments(), impl="triton")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame": torch.zeros(4, 4, 3)}, "frame must be uint8, got float32"),
        ({"frame": torch.zeros(3, 4, 4, dtype=torch.uint8)}, "frame must be [H0, W0, 3]"),
        ({"frame": torch.zeros(4, 4, dtype=torch.uint8)}, "frame must be [H0, W0, 3], got shape"),
        ({"height": 0}, "height and width must be at least 2, got 0x8"),
        ({"dtype": torch.int32}, "dtype must be float16, float32 or float64"),
        ({"out": torch.zeros(1, 3, 8, 8)}, "out must be [1, 3, H, W] = [1, 3, 16, 16]"),
        ({"out": torch.zeros(1, 3, 16, 16), "dtype": torch.float16}, "out must be float16"),
    ],
)
def test_preprocess_refuses(changes: dict[str, Any], message: str) -> None:
    good = {"frame": torch.zeros(4, 4, 3, dtype=torch.uint8), "height": 8, "width": 8}
    assert preprocess(**good).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError) as caught:
        preprocess(**(good | changes))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probabilities": torch.zeros(2, 4)}, "probabilities must be [K+1, H, W], got shape"),
        ({"probabilities": torch.zeros(257, 1, 1)}, "1 to 256 channels"),
        ({"ids": torch.zeros(3, dtype=torch.uint8)}, "ids must be [K+1] = [2], got [3]"),
        ({"ids": torch.zeros(2)}, "ids must be uint8, got float32"),
        ({"size": (0, 4)}, "size must be (H0, W0), at least 1, got (0, 4)"),
        ({"crop": (5, 4)}, "crop must be (h, w) from 1 up to (H, W) = (4, 4), got (5, 4)"),
        ({"out": torch.zeros(4, 9)}, "out must be uint8, got float32"),
    ],
)
def test_mask_head_refuses(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "probabilities": torch.zeros(2, 4, 4),
        "ids": torch.zeros(2, dtype=torch.uint8),
        "size": (8, 8),
    }
    assert mask_head(**good).shape == (8, 8)
    with pytest.raises(ValueError) as caught:
        mask_head(**(good | changes))
    assert message in str(caught.value)


def test_image_kernels_refuse_views(interpreter: Interpreter) -> None:
    frame = torch.zeros(3, 4, 4, dtype=torch.uint8).permute(1, 2, 0)
    assert "frame must be contiguous" in interpreter.error("preprocess", frame, 8, 8)
    ids = torch.zeros(2, dtype=torch.uint8)
    error = interpreter.error("mask_head", torch.zeros(2, 4, 8)[..., ::2], ids, (8, 8))
    assert "probabilities must be contiguous" in error


def test_auto_on_the_cpu_is_the_differentiable_reference() -> None:
    arguments = {
        "query": torch.randn(3, 2, dtype=torch.float64),
        "keys": torch.randn(2, 3, 2, dtype=torch.float64),
        "values": torch.randn(2, 1, 3, 2, dtype=torch.float64),
        "slots": torch.tensor([[0, 1]], dtype=torch.int32),
    }
    for name in ("query", "keys", "values"):
        arguments[name].requires_grad_()
    floating = [arguments[n] for n in ("query", "keys", "values")]
    assert torch.autograd.gradcheck(lambda *t: memory_read(*t, arguments["slots"]), floating)


def test_auto_takes_views_and_writes_out() -> None:
    arguments = read_arguments()
    arguments["keys"] = torch.randn(2, 32, 6).mT
    out = torch.full((1, 6, 64), float("nan"))
    assert memory_read(**arguments, out=out) is out
    assert torch.equal(out, memory_read_reference(**arguments))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_export_sees_plain_operations() -> None:
    class Read(torch.nn.Module):
        def forward(self, q: Any, k: Any, v: Any, s: Any) -> torch.Tensor:
            return memory_read(q, k, v, s)

    arguments = tuple(read_arguments().values())
    positions, capacity = torch.export.Dim("n", min=2), torch.export.Dim("s", min=2)
    shapes = ({0: positions}, {0: capacity, 1: positions}, {0: capacity, 2: positions}, {})
    program = torch.export.export(Read(), arguments, dynamic_shapes=shapes)
    larger = (
        torch.randn(9, 32),
        torch.randn(3, 9, 32),
        torch.randn(3, 1, 9, 64),
        torch.tensor([[2, 0]], dtype=torch.int32),
    )
    assert torch.allclose(program.module()(*larger), memory_read_reference(*larger), atol=1e-6)
    traced = torch.jit.trace(Read(), arguments)
    assert torch.allclose(traced(*larger), memory_read_reference(*larger), atol=1e-6)


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("kernels.memory_read", {"torch", "triton"}),
        ("kernels.preprocess", {"torch", "triton"}),
        ("kernels.mask_head", {"torch", "triton"}),
        ("kernels.aot", {"torch", "triton"}),
        ("kernels.launch", {"torch", "triton", "numpy"}),
        ("kernels.tiles", {"torch", "triton", "numpy"}),
    ],
)
def test_imports_are_light(module: str, banned: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({banned!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []
