"""The public mask head: checks its arguments, then runs the reference or the Triton kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kernels import checks

if TYPE_CHECKING:
    from torch import Tensor

OP = "mask_head"
MAX_IDS = 256


def mask_head(
    probabilities: Tensor,
    ids: Tensor,
    size: tuple[int, int],
    *,
    crop: tuple[int, int] | None = None,
    impl: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """ids[argmax_k bilinear(probabilities[k, :h, :w])], at the source's size.

    Plain bilinear with half-pixel centres, never antialiased, in float32; of equal channels the
    first wins, so a tie with the background is background. Where a probability is NaN the id is
    unspecified, but one of ``ids``.

    Parameters
    ----------
    probabilities: [K+1, H, W], float16 or float32 (the reference: any floating dtype); channel 0
        is the background.
    ids:  uint8 [K+1], the id of each channel.
    size: (H0, W0), the source's size.
    crop: (h, w), the network's size before padding (default: no padding).
    impl: as for ``kernels.memory_read``; ``"triton"`` needs contiguous tensors.
    out:  uint8 [H0, W0], contiguous.

    Returns
    -------
    uint8 [H0, W0], ``out`` if given. Raises ValueError that names the argument, got and wanted.
    """
    import torch

    crop = _check(probabilities, ids, size, crop, out)
    unfit = _unfit(probabilities, ids)
    if checks.choose(OP, impl, probabilities.device, unfit == "") == "reference":
        from kernels.mask_head.reference import mask_head_reference

        result = mask_head_reference(probabilities, ids, size, crop)
        return result if out is None else out.copy_(result)
    if unfit:
        raise ValueError(unfit)

    from kernels import tiles
    from kernels.mask_head.triton_impl import mask_head_triton

    if out is None:
        out = torch.empty(size, dtype=torch.uint8, device=probabilities.device)
    tile = tiles.table()[OP][checks.arch_of(probabilities.device)[0]]["pixels"]
    launched: Tensor = mask_head_triton(probabilities, ids, crop, out, tile)
    return launched


def _check(
    probabilities: Any, ids: Any, size: tuple[int, int], crop: tuple[int, int] | None, out: Any
) -> tuple[int, int]:
    import torch

    floating = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    checks.tensor(OP, "probabilities", probabilities, "[K+1, H, W]", floating)
    if 0 in probabilities.shape or probabilities.shape[0] > MAX_IDS:
        raise ValueError(
            f"{OP}: probabilities must be [K+1, H, W], 1 to {MAX_IDS} channels, none empty, "
            f"got {list(probabilities.shape)}"
        )
    checks.tensor(OP, "ids", ids, "[K+1]", (torch.uint8,))
    checks.shape(OP, "ids", ids, "[K+1]", (probabilities.shape[0],))
    checks.same_device(OP, probabilities=probabilities, ids=ids)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{OP}: size must be (H0, W0), at least 1, got {tuple(size)}")
    rows, columns = probabilities.shape[1:]
    if crop is None:
        crop = (rows, columns)
    if not (len(crop) == 2 and 1 <= crop[0] <= rows and 1 <= crop[1] <= columns):
        raise ValueError(
            f"{OP}: crop must be (h, w) from 1 up to (H, W) = {(rows, columns)}, got {tuple(crop)}"
        )
    if out is not None:
        checks.tensor(OP, "out", out, "[H0, W0]", (torch.uint8,))
        checks.shape(OP, "out", out, "[H0, W0]", tuple(size))
        checks.contiguous(OP, out=out)
        checks.same_device(OP, probabilities=probabilities, out=out)
    return crop


def _unfit(probabilities: Tensor, ids: Tensor) -> str:
    """Why the Triton kernel cannot take these arguments, or nothing if it can."""
    import torch

    try:
        kernel_types = (torch.float16, torch.float32)
        where = f"{OP}, impl='triton'"
        checks.tensor(where, "probabilities", probabilities, "[K+1, H, W]", kernel_types)
        checks.contiguous(OP, probabilities=probabilities, ids=ids)
        checks.no_grad(OP, probabilities=probabilities)
    except ValueError as error:
        return str(error)
    return ""
