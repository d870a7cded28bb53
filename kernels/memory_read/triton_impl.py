"""The memory read as one pass over keys and values: no affinity ever reaches device memory.

Two kernels. ``memory_read_kernel`` is an online softmax (Milakov and Gimelshein, "Online normalizer
calculation for softmax", 2018; Dao, "FlashAttention-2", 2023) over the key norms' biased scores.
Where one block per query tile would leave multiprocessors idle, the memory is cut into ``splits``
parts that run side by side, and ``memory_read_merge_kernel`` joins them by their log-sum-exps.
The README beside this file derives both. Nothing here imports torch before a launch, so that
``kernels.aot`` compiles the kernels without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from kernels.tiles import LOG2E, MERGE_COLUMNS, MERGE_ROWS, MERGE_WARPS, cdiv

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.tiles import ReadTiling

_ROW_CHUNK = tl.constexpr(128)


# No integer is specialised (to 1, or as a multiple of 16), so that the code that is compiled just
# in time is the code that ``kernels.aot`` builds and the tests inspect.
@triton.jit(do_not_specialize=["positions", "objects", "reads", "capacity", "splits"])
def memory_read_kernel(
    query,  # [N, CK]
    keys,  # [S, N, CK]
    values,  # [S, K, N, CV]
    slots,  # int32 [K, R]
    out,  # [K, N, CV]; written if splits == 1
    partial,  # fp32 [splits, K, N, CV]; written if splits > 1, as is
    lse,  # fp32 [splits, K, N], base 2
    positions,  # N
    objects,  # K
    reads,  # R
    capacity,  # S
    splits,
    SCALE: tl.constexpr,  # log2(e) / sqrt(CK)
    CK: tl.constexpr,
    CV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """readout[q] = Σ_m softmax_m((2·m·q − |m|²)/√CK)·value[m] for BLOCK_M queries.

    Grid: (⌈N/BLOCK_M⌉, ⌈K·CV/BLOCK_V⌉, splits). The objects' value columns lie side by side, K·CV
    of them, and a block owns BLOCK_V: a part of one object's, or those of BLOCK_V/CV objects. Such
    a group shares one affinity if its rows of ``slots`` are equal; else it makes one pass for each
    of its objects, and a pass stores that object's columns alone.
    """
    GROUP: tl.constexpr = BLOCK_V // CV if BLOCK_V > CV else 1
    block_v = tl.program_id(1)
    split = tl.program_id(2)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = block_v * BLOCK_V + tl.arange(0, BLOCK_V)
    owner = column // CV
    channel = column % CV
    first = block_v * BLOCK_V // CV

    passes = 1
    if GROUP > 1:
        differing = 0
        for g in tl.static_range(1, GROUP):
            # Where K does not fill the group, its last object stands in: it changes nothing.
            peer = tl.minimum(first + g, objects - 1)
            for r0 in range(0, reads, _ROW_CHUNK):
                r = r0 + tl.arange(0, _ROW_CHUNK)
                one = tl.load(slots + first * reads + r, mask=r < reads, other=-1)
                other = tl.load(slots + peer * reads + r, mask=r < reads, other=-1)
                differing += tl.sum((one != other).to(tl.int32), 0)
        if differing > 0:
            passes = GROUP

    # A part of the memory is a range of tiles, counted across the R slots of an object.
    tiles = tl.cdiv(positions, BLOCK_N)
    begin = (split * (reads * tiles)) // splits
    end = ((split + 1) * (reads * tiles)) // splits

    ck = tl.arange(0, CK)
    q = tl.load(query + row[:, None] * CK + ck[None, :], mask=row[:, None] < positions, other=0.0)

    for g in range(passes):
        best = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
        for r in range(begin // tiles, tl.cdiv(end, tiles)):
            slot = tl.load(slots + tl.minimum(first + g, objects - 1) * reads + r)
            lo = tl.maximum(begin - r * tiles, 0)
            hi = tl.minimum(end - r * tiles, tiles)
            # Skips −1 at no cost, and keeps a corrupt table from reading out of bounds.
            hi = tl.where((slot >= 0) & (slot < capacity), hi, lo)
            base = slot.to(tl.int64) * positions
            key_slot = keys + base * CK
            value_slot = values + base * objects * CV
            for tile in range(lo, hi):
                n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
                inside = n < positions
                key = tl.load(
                    key_slot + n[:, None] * CK + ck[None, :], mask=inside[:, None], other=0.0
                )
                value = tl.load(
                    value_slot + (owner * positions)[None, :] * CV + n[:, None] * CV
                    + channel[None, :],
                    mask=inside[:, None] & (owner < objects)[None, :],
                    other=0.0,
                )  # fmt: skip
                wide = key.to(tl.float32)
                norm = tl.sum(wide * wide, 1)
                # Scaled after the product, in fp32: scaling the fp16 operand would round it.
                score = tl.dot(q, tl.trans(key), input_precision="ieee") * (2.0 * SCALE)
                score -= (norm * SCALE)[None, :]
                score = tl.where(inside[None, :], score, float("-inf"))
                new_best = tl.maximum(best, tl.max(score, 1))
                weight = tl.exp2(score - new_best[:, None])
                decay = tl.exp2(best - new_best)
                total = total * decay + tl.sum(weight, 1)
                acc = acc * decay[:, None]
                acc = tl.dot(weight.to(value.dtype), value, acc, input_precision="ieee")
                best = new_best

        # total is 0 only where nothing was read: such an object is all zeros, its weight −inf.
        empty = total == 0.0
        result = acc / tl.where(empty, 1.0, total)[:, None]
        # The objects of this pass: its own, or with one pass for all the whole group.
        last = tl.minimum(first + g + 1 + GROUP - passes, objects)
        mine = (owner >= first + g) & (owner < last)
        mask = (row[:, None] < positions) & mine[None, :]
        spot = (owner * positions)[None, :] * CV + row[:, None] * CV + channel[None, :]
        if splits == 1:
            tl.store(out + spot, result.to(out.dtype.element_ty), mask=mask)
        else:
            part = split.to(tl.int64) * objects * positions
            tl.store(partial + part * CV + spot, result, mask=mask)
            weight_log = tl.where(empty, float("-inf"), best + tl.log2(tl.where(empty, 1.0, total)))
            for h in tl.static_range(0, GROUP):
                # Blocks that share an object hold the same log-sum-exp: one writes it.
                writes = (h >= g) & (first + h < last) & (block_v * BLOCK_V % CV == 0)
                tl.store(
                    lse + part + (first + h) * positions + row,
                    weight_log,
                    mask=(row < positions) & writes,
                )


@triton.jit(do_not_specialize=["rows", "splits"])
def memory_read_merge_kernel(
    partial,  # fp32 [splits, K, N, CV]
    lse,  # fp32 [splits, K, N], base 2
    out,  # [K, N, CV]
    rows,  # K·N
    splits,
    CV: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out = Σ_s 2^(lse_s − max)·partial_s / Σ_s 2^(lse_s − max).

    Grid: (⌈K·N/BLOCK_R⌉, CV/BLOCK_C).
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = row < rows
    best = tl.full([BLOCK_R], float("-inf"), tl.float32)
    for s in range(splits):
        weight = tl.load(lse + s * rows + row, mask=inside, other=float("-inf"))
        best = tl.maximum(best, weight)
    # Where no part read anything, any finite maximum does: all weights are 0.
    best = tl.where(best == float("-inf"), 0.0, best)
    total = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for s in range(splits):
        weight = tl.exp2(tl.load(lse + s * rows + row, mask=inside, other=float("-inf")) - best)
        start = partial + (s * rows).to(tl.int64) * CV
        part = tl.load(
            start + row[:, None] * CV + channel[None, :], mask=inside[:, None], other=0.0
        )
        total += weight
        acc += weight[:, None] * part
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        out + row[:, None] * CV + channel[None, :],
        result.to(out.dtype.element_ty),
        mask=inside[:, None],
    )


def memory_read_triton(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    out: Tensor,
    plan: ReadTiling,
) -> Tensor:
    """Launch the read on checked, contiguous tensors (``kernels.memory_read.api`` checks them)."""
    import torch

    positions, key_dim = query.shape
    capacity, objects, _, value_dim = values.shape
    reads = slots.shape[1]
    if plan.splits > 1:
        shape = (plan.splits, objects, positions)
        partial = torch.empty((*shape, value_dim), dtype=torch.float32, device=out.device)
        lse = torch.empty(shape, dtype=torch.float32, device=out.device)
    else:
        partial = lse = torch.empty(0, dtype=torch.float32, device=out.device)
    memory_read_kernel[plan.grid(positions, objects, value_dim)](
        query,
        keys,
        values,
        slots,
        out,
        partial,
        lse,
        positions,
        objects,
        reads,
        capacity,
        plan.splits,
        SCALE=LOG2E / key_dim**0.5,
        CK=key_dim,
        CV=value_dim,
        BLOCK_M=plan.block_m,
        BLOCK_N=plan.block_n,
        BLOCK_V=plan.block_v,
        num_warps=plan.warps,
        num_stages=plan.stages,
    )
    if plan.splits > 1:
        rows = objects * positions
        memory_read_merge_kernel[(cdiv(rows, MERGE_ROWS), value_dim // MERGE_COLUMNS)](
            partial,
            lse,
            out,
            rows,
            plan.splits,
            CV=value_dim,
            BLOCK_R=MERGE_ROWS,
            BLOCK_C=MERGE_COLUMNS,
            num_warps=MERGE_WARPS,
        )
    return out
