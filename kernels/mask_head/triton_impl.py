"""The mask head in one kernel: the upsampled probabilities never reach memory.

Nothing here imports torch: ``kernels.aot`` compiles without it.
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
def _taps(position, size_in, size_out):
    """The two neighbours of an output position, half-pixel centres, and the second's weight."""
    scale = size_in.to(tl.float32) / size_out.to(tl.float32)
    source = tl.maximum(scale * (position.to(tl.float32) + 0.5) - 0.5, 0.0)
    low = tl.minimum(source.to(tl.int32), size_in - 1)
    return low, tl.minimum(low + 1, size_in - 1), source - low.to(tl.float32)


@triton.jit(
    do_not_specialize=["channels", "rows", "columns", "height", "width", "height_out", "width_out"]
)
def mask_head_kernel(
    probabilities,  # [channels, rows, columns]
    ids,  # uint8 [channels]
    out,  # uint8 [height_out, width_out]
    channels,  # K+1
    rows,
    columns,
    height,  # rows and columns without padding
    width,
    height_out,
    width_out,
    BLOCK: tl.constexpr,
):
    """out[y, x] = ids[argmax_k bilinear(probabilities[k, :height, :width])(y, x)].

    Grid: (⌈height_out·width_out/BLOCK⌉,).
    """
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height_out * width_out
    y0, y1, wy = _taps(pixel // width_out, height, height_out)
    x0, x1, wx = _taps(pixel % width_out, width, width_out)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    winner = tl.zeros([BLOCK], tl.int32)
    plane = probabilities
    for k in range(channels):
        p00 = tl.load(plane + y0 * columns + x0, mask=inside, other=0.0).to(tl.float32)
        p01 = tl.load(plane + y0 * columns + x1, mask=inside, other=0.0).to(tl.float32)
        p10 = tl.load(plane + y1 * columns + x0, mask=inside, other=0.0).to(tl.float32)
        p11 = tl.load(plane + y1 * columns + x1, mask=inside, other=0.0).to(tl.float32)
        top = p00 * (1.0 - wx) + p01 * wx
        bottom = p10 * (1.0 - wx) + p11 * wx
        value = top * (1.0 - wy) + bottom * wy
        # Strictly greater: of equal channels the first wins.
        better = value > best
        winner = tl.where(better, k, winner)
        best = tl.where(better, value, best)
        plane += rows * columns
    tl.store(out + pixel, tl.load(ids + winner, mask=inside, other=0), mask=inside)


def mask_head_triton(
    probabilities: Tensor, ids: Tensor, crop: tuple[int, int], out: Tensor, tile: Tile
) -> Tensor:
    """Launch on checked tensors (``kernels.mask_head.api`` checks them)."""
    channels, rows, columns = probabilities.shape
    height_out, width_out = out.shape
    mask_head_kernel[(cdiv(height_out * width_out, tile.block[0]),)](
        probabilities,
        ids,
        out,
        channels,
        rows,
        columns,
        crop[0],
        crop[1],
        height_out,
        width_out,
        BLOCK=tile.block[0],
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out
