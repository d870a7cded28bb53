"""Preprocessing in one kernel: resize, normalise, pad and change of layout in a single pass.

Each thread owns one output pixel and gathers its taps; neighbouring pixels share most of them, so
the frame comes out of the cache. Nothing here imports torch: ``kernels.aot`` compiles without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from kernels.tiles import cdiv

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.tiles import Tile


@triton.jit
def _first_tap(position, size_in, scale):
    """Centre and first tap of an output row or column, as in PyTorch's antialiased resize."""
    centre = scale * (position.to(tl.float32) + 0.5)
    # (int) truncates; below zero both it and floor end at 0.
    low = tl.maximum((centre - tl.maximum(scale, 1.0) + 0.5).to(tl.int32), 0)
    high = tl.minimum((centre + tl.maximum(scale, 1.0) + 0.5).to(tl.int32), size_in)
    return centre, low, high


@triton.jit
def _weight(tap, centre, high, scale):
    """max(0, 1 − |tap − centre + ½| / max(scale, 1)), and 0 from ``high`` on."""
    distance = tl.abs(tap.to(tl.float32) - centre + 0.5) / tl.maximum(scale, 1.0)
    return tl.where(tap < high, tl.maximum(1.0 - distance, 0.0), 0.0)


@triton.jit(do_not_specialize=["height_in", "width_in", "height", "width", "rows", "columns"])
def preprocess_kernel(
    frame,  # uint8 [height_in, width_in, 3]
    out,  # [1, 3, rows, columns]
    height_in,
    width_in,
    height,  # size after the resize, before padding
    width,
    rows,  # height and width, padded
    columns,
    BLOCK: tl.constexpr,
):
    """out[c, y, x] = Σ_i Σ_j w_i·w_j·frame[i, j, c] / (Σw_i·Σw_j) / 127.5 − 1.

    w is the triangle filter of half-width max(scale, 1) around scale·(y + ½); y and x beyond the
    resized image repeat its last row and column. Grid: (⌈rows·columns/BLOCK⌉,).
    """
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < rows * columns
    y = tl.minimum(pixel // columns, height - 1)
    x = tl.minimum(pixel % columns, width - 1)
    scale_y = height_in.to(tl.float32) / height.to(tl.float32)
    scale_x = width_in.to(tl.float32) / width.to(tl.float32)
    centre_y, low_y, high_y = _first_tap(y, height_in, scale_y)
    centre_x, low_x, high_x = _first_tap(x, width_in, scale_x)
    taps_y = tl.max(tl.where(inside, high_y - low_y, 0), 0)
    taps_x = tl.max(tl.where(inside, high_x - low_x, 0), 0)

    red = tl.zeros([BLOCK], tl.float32)
    green = tl.zeros([BLOCK], tl.float32)
    blue = tl.zeros([BLOCK], tl.float32)
    total_y = tl.zeros([BLOCK], tl.float32)
    total_x = tl.zeros([BLOCK], tl.float32)
    for i in range(taps_y):
        weight_y = _weight(low_y + i, centre_y, high_y, scale_y)
        total_y += weight_y
        total_x = tl.zeros([BLOCK], tl.float32)
        line_red = tl.zeros([BLOCK], tl.float32)
        line_green = tl.zeros([BLOCK], tl.float32)
        line_blue = tl.zeros([BLOCK], tl.float32)
        for j in range(taps_x):
            weight_x = _weight(low_x + j, centre_x, high_x, scale_x)
            total_x += weight_x
            # 64 bits: an image may hold more than 2^31 bytes, its sides do not.
            spot = frame + ((low_y + i).to(tl.int64) * width_in + low_x + j) * 3
            mask = inside & (low_y + i < high_y) & (low_x + j < high_x)
            line_red += weight_x * tl.load(spot, mask=mask, other=0).to(tl.float32)
            line_green += weight_x * tl.load(spot + 1, mask=mask, other=0).to(tl.float32)
            line_blue += weight_x * tl.load(spot + 2, mask=mask, other=0).to(tl.float32)
        red += weight_y * line_red
        green += weight_y * line_green
        blue += weight_y * line_blue

    # The total cannot be 0: the tap next to the centre always weighs at least one half.
    norm = 1.0 / (total_y * total_x * 127.5)
    plane = rows * columns
    dtype = out.dtype.element_ty
    tl.store(out + pixel, (red * norm - 1.0).to(dtype), mask=inside)
    tl.store(out + plane + pixel, (green * norm - 1.0).to(dtype), mask=inside)
    tl.store(out + 2 * plane + pixel, (blue * norm - 1.0).to(dtype), mask=inside)


def preprocess_triton(frame: Tensor, height: int, width: int, out: Tensor, tile: Tile) -> Tensor:
    """Launch on checked tensors (``kernels.preprocess.api`` checks them)."""
    rows, columns = out.shape[2:]
    preprocess_kernel[(cdiv(rows * columns, tile.block[0]),)](
        frame,
        out,
        frame.shape[0],
        frame.shape[1],
        height,
        width,
        rows,
        columns,
        BLOCK=tile.block[0],
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out
