"""Runs Triton kernels in Triton's interpreter, in a process of its own.

Whether a kernel is interpreted or compiled is settled when Triton is imported, so one process
cannot do both: tests send NumPy arrays to a worker that was started under TRITON_INTERPRET=1 and
get arrays back. In the worker the references raise: a result can only come from the kernel.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np


class Interpreter:
    """One worker process; ``call`` runs a function of this module in it."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        before = os.environ.get("TRITON_INTERPRET")
        os.environ["TRITON_INTERPRET"] = "1"  # the child is born with it
        try:
            self._pool.submit(_start).result()
        finally:
            if before is None:
                del os.environ["TRITON_INTERPRET"]
            else:
                os.environ["TRITON_INTERPRET"] = before

    def close(self) -> None:
        self._pool.shutdown()

    def memory_read(self, *arrays: np.ndarray, plan: tuple[int, ...] | None = None) -> np.ndarray:
        """The kernel's readout; ``plan``: a ReadTiling's fields, instead of the API's choice."""
        return self._pool.submit(_memory_read, arrays, plan).result()

    def preprocess(self, frame: np.ndarray, height: int, width: int, dtype: str) -> np.ndarray:
        return self._pool.submit(_preprocess, frame, height, width, dtype).result()

    def mask_head(
        self,
        probabilities: np.ndarray,
        ids: np.ndarray,
        size: tuple[int, int],
        crop: tuple[int, int],
    ) -> np.ndarray:
        return self._pool.submit(_mask_head, probabilities, ids, size, crop).result()

    def error(self, op: str, *arguments: Any, **options: Any) -> str:
        """The message of the ValueError that a public operation raises, or "" if it does not."""
        return self._pool.submit(_error, op, arguments, options).result()


def _start() -> None:
    import torch
    import triton

    assert triton.knobs.runtime.interpret
    torch.set_num_threads(1)
    import kernels.mask_head.reference as mask_head
    import kernels.memory_read.reference as memory_read
    import kernels.preprocess.reference as preprocess

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the reference ran in place of the kernel")

    memory_read.memory_read_reference = refuse  # type: ignore[assignment]
    preprocess.preprocess_reference = refuse  # type: ignore[assignment]
    mask_head.mask_head_reference = refuse  # type: ignore[assignment]


def _memory_read(arrays: tuple[np.ndarray, ...], plan: tuple[int, ...] | None) -> np.ndarray:
    import torch

    from kernels.memory_read import memory_read
    from kernels.tiles import ReadTiling

    query, keys, values, slots = (torch.from_numpy(a) for a in arrays)
    shape = (values.shape[1], query.shape[0], values.shape[3])
    out = torch.full(shape, float("nan"), dtype=query.dtype)
    if plan is None:
        result = memory_read(query, keys, values, slots, impl="triton", out=out)
    else:
        from kernels.memory_read.triton_impl import memory_read_triton

        result = memory_read_triton(query, keys, values, slots, out, ReadTiling(*plan))
    assert result.data_ptr() == out.data_ptr()
    return out.numpy()


def _preprocess(frame: np.ndarray, height: int, width: int, dtype: str) -> np.ndarray:
    import torch

    from kernels.preprocess import preprocess

    shape = (1, 3, height + -height % 16, width + -width % 16)
    out = torch.full(shape, float("nan"), dtype=getattr(torch, dtype))
    preprocess(torch.from_numpy(frame), height, width, impl="triton", out=out)
    return out.numpy()


def _mask_head(
    probabilities: np.ndarray, ids: np.ndarray, size: tuple[int, int], crop: tuple[int, int]
) -> np.ndarray:
    import torch

    from kernels.mask_head import mask_head

    unused = next(i for i in range(256) if i not in ids)
    out = torch.full(size, unused, dtype=torch.uint8)
    tensors = torch.from_numpy(probabilities), torch.from_numpy(ids)
    mask_head(*tensors, size, crop=crop, impl="triton", out=out)
    assert unused not in out, "a pixel was not written"
    return out.numpy()


def _error(op: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
    import importlib

    function = getattr(importlib.import_module(f"kernels.{op}"), op)
    try:
        function(*arguments, impl="triton", **options)
    except ValueError as error:
        return str(error)
    return ""
