"""The public preprocessing: checks its arguments, then runs the reference or the Triton kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kernels import checks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

OP = "preprocess"
MULTIPLE = 16  # of the network's resolution: its deepest features have stride 16


def preprocess(
    frame: Tensor,
    height: int,
    width: int,
    *,
    dtype: torch.dtype | None = None,
    impl: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Resize a frame to [height, width], normalise it to −1…1, pad it to multiples of 16.

        out[c, y, x] = (Σ_i Σ_j w_i·w_j·frame[i, j, c]) / (Σ w_i·Σ w_j) / 127.5 − 1

    Bilinear with half-pixel centres, antialiased: w is a triangle of half-width max(scale, 1)
    around scale·(y + ½), as ``torch.nn.functional.interpolate(antialias=True)`` has it, in floating
    point throughout. Padding, right and bottom, repeats the edge.

    Parameters
    ----------
    frame: uint8 [H0, W0, 3], RGB.
    height, width: the size to resize to, at least 2, before padding; H, W are the next multiples
        of 16.
    dtype: float16 or float32 (default); the reference also does float64.
    impl: as for ``kernels.memory_read``; ``"triton"`` needs a contiguous frame.
    out: [1, 3, H, W], contiguous; its dtype is the result's, and ``dtype`` may be left out.

    Returns
    -------
    [1, 3, H, W], ``out`` if given. Raises ValueError that names the argument, got and wanted.
    """
    import torch

    _check(frame, height, width, dtype, out)
    if dtype is None:
        dtype = torch.float32 if out is None else out.dtype
    unfit = _unfit(frame, dtype)
    if checks.choose(OP, impl, frame.device, unfit == "") == "reference":
        from kernels.preprocess.reference import preprocess_reference

        result = preprocess_reference(frame, height, width, dtype)
        return result if out is None else out.copy_(result)
    if unfit:
        raise ValueError(unfit)

    from kernels import tiles
    from kernels.preprocess.triton_impl import preprocess_triton

    if out is None:
        shape = _padded(height, width)
        out = torch.empty(shape, dtype=dtype, device=frame.device)
    tile = tiles.table()[OP][checks.arch_of(frame.device)[0]]["pixels"]
    launched: Tensor = preprocess_triton(frame, height, width, out, tile)
    return launched


def _padded(height: int, width: int) -> tuple[int, int, int, int]:
    return 1, 3, height + -height % MULTIPLE, width + -width % MULTIPLE


def _check(frame: Any, height: int, width: int, dtype: Any, out: Any) -> None:
    import torch

    checks.tensor(OP, "frame", frame, "[H0, W0, 3]", (torch.uint8,))
    if frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(f"{OP}: frame must be [H0, W0, 3], none empty, got {list(frame.shape)}")
    # PyTorch's antialiased resize (2.13, CPU) mixes up the rows where the result is 1 wide.
    if height < 2 or width < 2:
        raise ValueError(f"{OP}: height and width must be at least 2, got {height}x{width}")
    floating = (torch.float16, torch.float32, torch.float64)
    if dtype is not None and dtype not in floating:
        raise ValueError(f"{OP}: dtype must be float16, float32 or float64, got {dtype}")
    if out is not None:
        checks.tensor(OP, "out", out, "[1, 3, H, W]", floating if dtype is None else (dtype,))
        checks.shape(OP, "out", out, "[1, 3, H, W]", _padded(height, width))
        checks.contiguous(OP, out=out)
        checks.same_device(OP, frame=frame, out=out)


def _unfit(frame: Tensor, dtype: Any) -> str:
    """Why the Triton kernel cannot take these arguments, or nothing if it can."""
    import torch

    if dtype == torch.float64:
        return f"{OP}, impl='triton': dtype must be float16 or float32, got float64"
    try:
        checks.contiguous(OP, frame=frame)
    except ValueError as error:
        return str(error)
    return ""
