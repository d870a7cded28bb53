"""The public memory read: checks its arguments, then runs the reference or the Triton kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kernels import checks
from kernels.tiles import SPLIT_LIMIT

if TYPE_CHECKING:
    from torch import Tensor

OP = "memory_read"
KEY_DIMS = (32, 64, 128)
VALUE_STEP, VALUE_MAX = 64, 512


def memory_read(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    *,
    impl: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Read, for each object, the values of its memory slots at the positions that match a query.

    For object ``k``, with m running over the R·N positions of the slots in ``slots[k]``:

        S[q, m]    = (2·m·q − |m|²) / √Ck          negative squared L2 distance; |q|² cancels
        readout[q] = Σ_m softmax_m(S[q, m]) · value[m]

    Source: Cheng, Tai, Tang, "Rethinking Space-Time Networks with Improved Memory Coverage for
    Efficient Video Object Segmentation" (STCN), NeurIPS 2021, section 3.2.

    Parameters
    ----------
    query:  [N, Ck] floating; keys of the frame to segment.
    keys:   [S, N, Ck], same dtype and device.
    values: [S, K, N, Cv], same dtype and device.
    slots:  [K, R] int32 (int64 is converted); the slots that each object reads, −1 for none.
    impl:   ``"reference"``: PyTorch, differentiable, any strides, any floating dtype;
            ``"triton"``: the fused kernel: float16 or float32, contiguous, Ck 32, 64 or 128, Cv a
            multiple of 64 up to 512, no autograd; on CPU tensors under TRITON_INTERPRET=1 only;
            ``"auto"``: the kernel on CUDA tensors that it takes, else the reference; while
            torch.compile, torch.export or the ONNX exporter records, always the reference.
    out:    [K, N, Cv], contiguous, same dtype and device: receives the readout.

    Returns
    -------
    [K, N, Cv], ``out`` if given; zeros for an object all of whose slots are −1.

    Raises ValueError that names the argument, what it got and what it wanted. Slot numbers are
    checked on the CPU only, since on a GPU that would wait for the device: there the kernel skips a
    number ≥ S as it does −1.
    """
    if _tracing():
        # The tracer must see plain tensor operations; what it records was checked when it ran.
        from kernels.memory_read.reference import memory_read_reference

        return memory_read_reference(query, keys, values, slots)

    _check(query, keys, values, slots, out)
    chosen = checks.choose(OP, impl, query.device, _unfit(query, keys, values, slots, out) == "")
    if chosen == "reference":
        from kernels.memory_read.reference import memory_read_reference

        readout = memory_read_reference(query, keys, values, slots)
        return readout if out is None else out.copy_(readout)

    unfit = _unfit(query, keys, values, slots, out)
    if unfit:
        raise ValueError(unfit)
    return _run_triton(query, keys, values, slots, out)


def _run_triton(
    query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, out: Tensor | None
) -> Tensor:
    import torch

    from kernels import tiles
    from kernels.memory_read.triton_impl import memory_read_triton

    objects, reads = slots.shape
    positions, key_dim = query.shape
    value_dim = values.shape[3]
    arch, multiprocessors = checks.arch_of(query.device)
    plan = tiles.tile_memory_read(
        "fp16" if query.dtype == torch.float16 else "fp32",
        positions,
        key_dim,
        value_dim,
        objects,
        reads,
        arch=arch,
        multiprocessors=multiprocessors,
    )
    if out is None:
        out = query.new_empty(objects, positions, value_dim)
    result: Tensor = memory_read_triton(query, keys, values, slots.int(), out, plan)
    return result


def _tracing() -> bool:
    """Whether torch.compile, torch.export or the ONNX exporter is recording."""
    import torch

    if torch.compiler.is_compiling():
        return True
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def _check(query: Any, keys: Any, values: Any, slots: Any, out: Any) -> None:
    """What every implementation asks for."""
    import torch

    floating = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    checks.tensor(OP, "query", query, "[N, Ck]", floating)
    same = (query.dtype,)
    checks.tensor(OP, "keys", keys, "[S, N, Ck]", same)
    checks.tensor(OP, "values", values, "[S, K, N, Cv]", same)
    checks.tensor(OP, "slots", slots, "[K, R]", (torch.int32, torch.int64))
    positions, key_dim = query.shape
    capacity, objects, _, value_dim = values.shape
    checks.shape(OP, "keys", keys, "[S, N, Ck]", (capacity, positions, key_dim))
    checks.shape(OP, "values", values, "[S, K, N, Cv]", (capacity, objects, positions, value_dim))
    if slots.shape[0] != objects:
        raise ValueError(
            f"{OP}: slots must be [K, R] with K = {objects} as in values, got {list(slots.shape)}"
        )
    sizes = {"N": positions, "Ck": key_dim, "S": capacity, "K": objects}
    sizes |= {"R": slots.shape[1], "Cv": value_dim}
    empty = [name for name, size in sizes.items() if size == 0]
    if empty:
        raise ValueError(f"{OP}: the memory is empty: {', '.join(empty)} must be at least 1, got 0")
    named = {"query": query, "keys": keys, "values": values, "slots": slots}
    if out is not None:
        checks.tensor(OP, "out", out, "[K, N, Cv]", same)
        checks.shape(OP, "out", out, "[K, N, Cv]", (objects, positions, value_dim))
        checks.contiguous(OP, out=out)
        named["out"] = out
    checks.same_device(OP, **named)
    if slots.device.type == "cpu":
        low, high = int(slots.min()), int(slots.max())
        if low < -1 or high >= capacity:
            raise ValueError(
                f"{OP}: slots must lie in -1…{capacity - 1} (S = {capacity}), "
                f"got {low if low < -1 else high}"
            )


def _unfit(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, out: Tensor | None) -> str:
    """Why the Triton kernel cannot take these arguments, or nothing if it can."""
    import torch

    try:
        # bf16 compiles, but the interpreter computes it wrongly: it could not be checked.
        kernel_types = (torch.float16, torch.float32)
        checks.tensor(f"{OP}, impl='triton'", "query", query, "[N, Ck]", kernel_types)
        checks.contiguous(OP, query=query, keys=keys, values=values, slots=slots)
        checks.no_grad(OP, query=query, keys=keys, values=values)
    except ValueError as error:
        return str(error)
    key_dim, value_dim = query.shape[1], values.shape[3]
    if key_dim not in KEY_DIMS:
        return f"{OP}, impl='triton': Ck must be 32, 64 or 128, got {key_dim}"
    if value_dim % VALUE_STEP or value_dim > VALUE_MAX:
        return f"{OP}, impl='triton': Cv must be a multiple of 64 up to 512, got {value_dim}"
    # The kernel counts in 32 bits within one slot, and tiles across one object's reads.
    largest = max(values[0].numel(), slots.shape[1] * query.shape[0] * SPLIT_LIMIT)
    if largest >= 2**31:
        return f"{OP}, impl='triton': a slot must hold fewer than 2^31 elements, got {largest}"
    return ""
