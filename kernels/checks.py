"""Argument checks of the operations' public functions: errors name the argument, got, wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def tensor(op: str, name: str, value: Any, dims: str, dtypes: tuple[Any, ...]) -> None:
    """``value`` must be a tensor with the dimensions that ``dims`` names, of one of ``dtypes``."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{op}: {name} must be a tensor {dims}, got {type(value).__name__}")
    if value.dim() != len(dims.split(",")):
        raise ValueError(f"{op}: {name} must be {dims}, got shape {list(value.shape)}")
    if value.dtype not in dtypes:
        raise ValueError(f"{op}: {name} must be {_names(dtypes)}, got {_names((value.dtype,))}")


def shape(op: str, name: str, value: Tensor, dims: str, wanted: tuple[int, ...]) -> None:
    """``value`` must have the shape ``wanted``."""
    if tuple(value.shape) != wanted:
        raise ValueError(f"{op}: {name} must be {dims} = {list(wanted)}, got {list(value.shape)}")


def same_device(op: str, **tensors: Tensor) -> None:
    """All tensors must lie on the first one's device."""
    names = list(tensors)
    for name in names[1:]:
        if tensors[name].device != tensors[names[0]].device:
            raise ValueError(
                f"{op}: {name} must be on {tensors[names[0]].device} as {names[0]} is, "
                f"got {tensors[name].device}"
            )


def contiguous(op: str, **tensors: Tensor) -> None:
    """All tensors must be contiguous: the kernels compute addresses from shapes alone."""
    for name, value in tensors.items():
        if not value.is_contiguous():
            raise ValueError(
                f"{op}: {name} must be contiguous, got strides {list(value.stride())} for shape "
                f"{list(value.shape)}; call .contiguous() on it"
            )


def no_grad(op: str, **tensors: Tensor) -> None:
    """The kernels have no backward pass: refuse rather than cut the graph without a word."""
    import torch

    if torch.is_grad_enabled():
        for name, value in tensors.items():
            if value.requires_grad:
                raise ValueError(
                    f"{op}: {name} requires grad, but impl='triton' has no backward pass; "
                    f"use impl='reference' or torch.no_grad()"
                )


def choose(op: str, impl: str, device: Any, fits: bool) -> str:
    """The implementation to run: ``impl``, or for ``"auto"`` the kernel where it can run.

    fits: whether the kernel takes these arguments at all. On CPU tensors ``"auto"`` is always the
    reference, which autograd and the ONNX export can see through.
    """
    if impl not in ("auto", "reference", "triton"):
        raise ValueError(f"{op}: impl must be 'auto', 'reference' or 'triton', got {impl!r}")
    if impl == "auto":
        return "triton" if device.type == "cuda" and fits and _triton_installed() else "reference"
    if impl == "triton":
        if not _triton_installed():
            raise ValueError(f"{op}: impl='triton' needs the package 'triton', not installed")
        if device.type != "cuda" and not interpreting():
            raise ValueError(
                f"{op}: impl='triton' takes {device.type} tensors only under Triton's interpreter; "
                f"set TRITON_INTERPRET=1 before the first import of triton, or use impl='auto'"
            )
    return impl


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def arch_of(device: Any) -> tuple[str, int]:
    """Architecture in the tile table and number of multiprocessors of a device.

    The interpreter plays the A40, for which the first figures of this project are planned.
    """
    from kernels import tiles

    if device.type != "cuda":
        return "sm_86", 84
    import torch

    properties = torch.cuda.get_device_properties(device)
    return (
        tiles.nearest_arch(properties.major, properties.minor),
        int(properties.multi_processor_count),
    )


def _triton_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None


def _names(dtypes: tuple[Any, ...]) -> str:
    return " or ".join(str(d).removeprefix("torch.") for d in dtypes)
