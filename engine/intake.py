"""What a `Segmenter` takes from its caller, checked: frames, masks and the kind of output."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError
from engine.runtime.base import Backend
from engine.runtime.gpu.arrays import device_shape, on_device

Mask = NDArray[np.uint8]  # [H, W], object ids, 0 = background


class DLPackArray(Protocol):
    """An array of any library that speaks DLPack, such as a `torch.Tensor`."""

    def __dlpack__(self, *, stream: Any = ...) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


class CudaArray(Protocol):
    """An array on a GPU that has the CUDA array interface."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


#: uint8 [H, W, 3], RGB. On a GPU only for a GPU backend.
FrameLike = NDArray[np.uint8] | DLPackArray | CudaArray


def shape_text(shape: tuple[int, ...]) -> str:
    """Write a size as people do, "WIDTHxHEIGHT"."""
    return f"{shape[1]}x{shape[0]}"


def check_output(output: str, backend: Backend) -> str:
    """Return ``output``; raise InputError if the backend cannot give it."""
    if output not in ("numpy", "dlpack"):
        raise InputError(f"unknown output '{output}'; choose one of: numpy, dlpack")
    if output == "dlpack" and not backend.on_gpu:
        raise InputError(
            f"the backend '{backend.name}' has its masks on the host; leave output='dlpack' out"
        )
    return output


def take_frame(frame: Any, backend: Backend) -> tuple[Any, tuple[int, ...]]:
    """Return a frame as the backend takes it, and its shape; raise InputError if it is no frame."""
    if on_device(frame):
        if not backend.on_gpu:
            raise InputError(
                f"this frame lies on a GPU, but the backend '{backend.name}' reads the host's "
                "memory; copy it there first, or use a GPU backend"
            )
        return frame, device_shape(frame)
    if hasattr(frame, "__dlpack__") and not isinstance(frame, np.ndarray):
        frame = np.from_dlpack(frame)
    check_frame(frame)
    return frame, frame.shape


def own_frame(frame: Any) -> Any:
    """Copy a frame that lies on the host, whose owner may use its memory again."""
    if on_device(frame):
        return frame
    if hasattr(frame, "__dlpack__") and not isinstance(frame, np.ndarray):
        frame = np.from_dlpack(frame)
    return np.array(frame) if isinstance(frame, np.ndarray) else frame


def check_frame(frame: Any) -> None:
    """Raise InputError unless ``frame`` is uint8 [H, W, 3] and not empty."""
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
        got = getattr(frame, "dtype", type(frame).__name__)
        raise InputError(f"a frame must be a NumPy array of dtype uint8, but this one is {got}")
    if frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise InputError(f"a frame must be RGB, [height, width, 3], but this one is {frame.shape}")


def check_mask(mask: Any, size: tuple[int, ...]) -> list[int]:
    """Return the ids in a mask; raise InputError unless it is uint8 of ``size`` and has some."""
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.ndim != 2:
        got = f"{getattr(mask, 'dtype', type(mask).__name__)} {getattr(mask, 'shape', '')}"
        raise InputError(f"a mask must be a NumPy array uint8 [height, width], but this is {got}")
    if mask.shape != size:
        raise InputError(
            f"the mask is {shape_text(mask.shape)}, but the frame is {shape_text(size)}; "
            "they must be of one size"
        )
    ids = [int(i) for i in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)) if i]
    if not ids:
        raise InputError("the mask has no object: all its pixels are 0, the background")
    return ids
