"""Run the kernels with every tensor against an unreadable page: ``guarded.py CASE``.

In the interpreter a read past a tensor's end goes unnoticed, as it mostly does on a GPU. Here the
first byte past it (or before it) lies in a page without access, and the process dies. Run as a
script, under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable

import torch

PAGE = mmap.PAGESIZE
_KEEP: list[mmap.mmap] = []  # a tensor does not own the pages that it lies in


def guard(tensor: torch.Tensor, before: bool) -> torch.Tensor:
    """A copy of ``tensor`` that starts right after, or ends right before, a forbidden page."""
    size = tensor.numel() * tensor.element_size()
    pages = -(-size // PAGE)
    block = mmap.mmap(-1, (pages + 2) * PAGE)
    _KEEP.append(block)
    start = ctypes.addressof(ctypes.c_char.from_buffer(block))
    libc = ctypes.CDLL(None, use_errno=True)
    for page in (start, start + (pages + 1) * PAGE):
        if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect failed")
    offset = PAGE if before else PAGE + pages * PAGE - size
    copy = torch.frombuffer(block, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return copy.view(tensor.shape).copy_(tensor)


def memory_read(before: bool, lie: int = 0) -> None:
    """Ragged shapes, shared and separate tables, with and without splits.

    lie: how many positions more than there are the kernel is told of.
    """
    from kernels.memory_read.triton_impl import memory_read_triton
    from kernels.tiles import ReadTiling

    for dtype in (torch.float16, torch.float32):
        # 7 is no slot: the kernel must skip it.
        for slots in ([[2, -1]], [[0, 1], [0, 1], [1, 2]], [[0, 7], [0, 7]]):
            objects = len(slots)
            positions = 21
            query = torch.randn(positions, 32, dtype=dtype)
            keys = torch.randn(3, positions, 32, dtype=dtype)
            values = torch.randn(3, objects, positions, 64, dtype=dtype)
            table = torch.tensor(slots, dtype=torch.int32)
            out = torch.empty(objects, positions, 64, dtype=dtype)
            tensors = [guard(t, before) for t in (query, keys, values, table, out)]
            if lie:  # the launcher takes N from the query
                tensors[0] = torch.zeros(positions + lie, 32, dtype=dtype)
            for splits, block_v in ((1, 64), (3, 128)):
                memory_read_triton(*tensors, ReadTiling(16, 16, block_v, 4, 2, splits))


def preprocess(before: bool) -> None:
    from kernels.preprocess import preprocess

    for source, size in (((37, 53), (19, 27)), ((19, 27), (37, 53)), ((2, 3), (2, 3))):
        frame = guard(torch.randint(0, 256, (*source, 3), dtype=torch.uint8), before)
        shape = (1, 3, size[0] + -size[0] % 16, size[1] + -size[1] % 16)
        preprocess(frame, *size, impl="triton", out=guard(torch.zeros(shape), before))


def mask_head(before: bool) -> None:
    from kernels.mask_head import mask_head

    for crop, size in (((16, 32), (45, 61)), ((13, 29), (7, 11))):
        probabilities = guard(torch.rand(3, 16, 32), before)
        ids = guard(torch.arange(3, dtype=torch.uint8), before)
        out = guard(torch.zeros(size, dtype=torch.uint8), before)
        mask_head(probabilities, ids, size, crop=crop, impl="triton", out=out)


def far_slots() -> None:
    """Slots beyond 2³¹ elements: pages that nothing touches cost nothing."""
    from kernels.memory_read.reference import memory_read_reference
    from kernels.memory_read.triton_impl import memory_read_triton
    from kernels.tiles import ReadTiling

    positions, dims = 33, 64
    capacity = 2**31 // (positions * dims) + 2

    def sparse(*shape: int) -> torch.Tensor:
        count = 1
        for side in shape:
            count *= side
        reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)
        block = mmap.mmap(-1, count * 2, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve)
        _KEEP.append(block)
        return torch.frombuffer(block, dtype=torch.float16).view(shape)

    keys = sparse(capacity, positions, dims)
    values = sparse(capacity, 1, positions, dims)
    keys[-1], values[-1] = torch.randn(positions, dims), torch.randn(1, positions, dims)
    query = torch.randn(positions, dims).half()
    table = torch.tensor([[capacity - 1]], dtype=torch.int32)
    out = torch.full((1, positions, dims), float("nan")).half()
    memory_read_triton(query, keys, values, table, out, ReadTiling(16, 16, 64, 4, 2, 1))
    near = torch.zeros(1, 1, dtype=torch.int32)
    wanted = memory_read_reference(query.double(), keys[-1:].double(), values[-1:].double(), near)
    assert (out.double() - wanted).abs().max() < 1e-2


CASES: dict[str, Callable[[], None]] = {
    f"{op.__name__}-{'before' if before else 'after'}": (lambda o=op, b=before: o(b))
    for op in (memory_read, preprocess, mask_head)
    for before in (False, True)
} | {
    "far_slots": far_slots,
    "lie": lambda: memory_read(False, lie=1),
}

if __name__ == "__main__":
    import triton

    assert triton.knobs.runtime.interpret
    torch.manual_seed(0)
    for case in sys.argv[1:]:
        CASES[case]()
        print("finished", case, flush=True)
