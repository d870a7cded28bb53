"""Take GPU arrays from other libraries and hand GPU arrays to them, without torch.

Structures of DLPack 0.8 (``dlpack.h``), and version 3 of the CUDA array interface (Numba's
documentation). Nothing goes through the host.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError
from engine.runtime.gpu.driver import Device, Event, Scope, Stream
from engine.runtime.gpu.pool import fetch

CUDA, CUDA_MANAGED = 2, 13  # DLDeviceType
UINT = 1  # DLDataTypeCode
NAME = b"dltensor"


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))
_CapsuleDestructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _python(name: str, result: Any, *arguments: Any) -> Any:
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_new = _python(
    "PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _CapsuleDestructor
)
_pointer = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
# A destructor gets a capsule that is already dying, and must not count it as an object.
_dying_valid = _python("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_dying_pointer = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)


@dataclass(frozen=True)
class DeviceFrame:
    """A frame on the GPU, uint8 [H, W, 3], contiguous, for as long as ``owner`` lives."""

    address: int
    shape: tuple[int, ...]
    owner: Any


def on_device(array: Any) -> bool:
    """Whether an array lies on a GPU, by either protocol."""
    if isinstance(array, np.ndarray):
        return False
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[0]) in (CUDA, CUDA_MANAGED)
    return hasattr(array, "__cuda_array_interface__")


def device_shape(array: Any) -> tuple[int, ...]:
    """Return the shape of a device array without importing it."""
    if hasattr(array, "__cuda_array_interface__"):
        return tuple(array.__cuda_array_interface__["shape"])
    return tuple(int(side) for side in array.shape)


def import_frame(array: Any, device: Device, stream: Stream, event: Event) -> DeviceFrame:
    """Take a frame from another library; later work on ``stream`` waits for its producer.

    Raises InputError unless it is uint8 [H, W, 3], contiguous and on this device.
    """
    if hasattr(array, "__dlpack_device__"):
        ordinal = int(array.__dlpack_device__()[1])
        if ordinal != device.ordinal:
            raise InputError(
                f"the frame lies on GPU {ordinal}, but the network runs on GPU {device.ordinal}; "
                "copy it there first"
            )
        # The producer makes our stream wait for its own.
        return _from_capsule(array.__dlpack__(stream=int(stream)))
    interface = array.__cuda_array_interface__
    if interface["typestr"] not in ("|u1", "<u1", "=u1"):
        raise InputError(f"a frame must be of dtype uint8, but this one is {interface['typestr']}")
    shape = tuple(interface["shape"])
    _check(shape, interface.get("strides"), 1)
    producer = interface.get("stream")
    if producer is not None:
        event.record(Stream(device, device.api.CUstream(producer)))
        stream.wait(event)
    return DeviceFrame(int(interface["data"][0]), shape, array)


def _from_capsule(capsule: Any) -> DeviceFrame:
    tensor = _Managed.from_address(_pointer(capsule, NAME)).tensor
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    dtype = tensor.dtype
    if (dtype.code, dtype.bits, dtype.lanes) != (UINT, 8, 1):
        raise InputError(
            f"a frame must be of dtype uint8, but this one has DLPack's type {dtype.code} of "
            f"{dtype.bits} bits"
        )
    strides = [tensor.strides[i] for i in range(tensor.ndim)] if tensor.strides else None
    _check(shape, strides, 1)
    # An unused capsule tells the producer, when it dies, that the memory is free again.
    return DeviceFrame(int(tensor.data or 0) + int(tensor.byte_offset), shape, capsule)


def _check(shape: tuple[int, ...], strides: Sequence[int] | None, item: int) -> None:
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise InputError(f"a frame must be RGB, [height, width, 3], but this one is {shape}")
    dense = (shape[1] * 3 * item, 3 * item, item)
    if strides is not None and tuple(strides) != dense:
        raise InputError(
            f"a frame on the GPU must be contiguous, [height, width, 3], but its strides are "
            f"{tuple(strides)}; make a contiguous copy first"
        )


class DeviceMask:
    """A mask on the GPU, uint8 [H, W], for DLPack and ``__cuda_array_interface__``.

    It is complete when it is handed out: no stream needs to wait for it. It owns its memory, which
    is freed with the last array made from it, at the latest when the program ends.
    """

    def __init__(self, device: Device, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype = shape, np.dtype(np.uint8)
        self._device = device
        self._memory = Scope(device)
        device.retain()
        try:
            self.address = self._memory.memory(shape[0] * shape[1], "a mask")
        except BaseException:
            device.release()
            raise

    @classmethod
    def of(cls, device: Device, mask: NDArray[np.uint8], stream: Stream) -> DeviceMask:
        """Copy a mask from the host to the device; waits until it is there."""
        made = cls(device, mask.shape)
        scope = Scope(device)
        try:
            staging = scope.pinned(mask.nbytes, "a mask")
            staging[:] = mask.reshape(-1)
            stream.upload(made.address, staging)
            stream.synchronize()
        finally:
            scope.close()
        return made

    def __del__(self) -> None:
        if hasattr(self, "address") and not sys.is_finalizing():
            self._device.use()
            self._memory.close()
            self._device.release()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self.address, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self._device.ordinal

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        return _capsule(self, CUDA, self._device.ordinal)

    def numpy(self) -> NDArray[np.uint8]:
        """Return a copy on the host, uint8 [H, W]."""
        self._device.use()
        scope = Scope(self._device)
        try:
            return fetch(scope.stream(), self.address, self.shape, self.dtype)
        finally:
            scope.close()


#: Managed tensors that a consumer still holds, by their address: what C points to must live on.
_held: dict[int, tuple[Any, ...]] = {}


def _delete(managed: Any) -> None:
    _held.pop(ctypes.addressof(managed.contents), None)


def _destroy(capsule: Any) -> None:
    # A consumer renames the capsule that it takes; under its old name nobody has taken it.
    if _dying_valid(capsule, NAME):
        _held.pop(_dying_pointer(capsule, NAME), None)


_DELETE, _DESTROY = _Deleter(_delete), _CapsuleDestructor(_destroy)


def _capsule(mask: DeviceMask, kind: int, ordinal: int) -> Any:
    sides = (ctypes.c_int64 * 2)(*mask.shape)
    strides = (ctypes.c_int64 * 2)(mask.shape[1], 1)
    tensor = _Tensor(mask.address, _Device(kind, ordinal), 2, _DataType(UINT, 8, 1), sides, strides)
    managed = _Managed(tensor, None, _DELETE)
    address = ctypes.addressof(managed)
    _held[address] = (managed, sides, strides, mask)
    return _new(address, NAME, _DESTROY)
