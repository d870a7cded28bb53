"""The CUDA driver through cuda-python: errors become one line, and scopes release what they hold.

No torch and no CUDA toolkit: ``cuda.bindings`` loads the driver's own library. Addresses are ints.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import BackendError, MissingExtraError

#: CUDA 12.0: what the cubins and the driver calls in use need.
OLDEST_DRIVER = 12000
_STALE = {
    "CUDA_ERROR_NO_BINARY_FOR_GPU",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    "CUDA_ERROR_INVALID_IMAGE",
}


_NO_DRIVER = (
    "there is no NVIDIA driver on this machine (libcuda cannot be loaded); install one, or use "
    "--backend cpu"
)


def need_driver() -> None:
    """Raise BackendError if the driver's library cannot be loaded; needs no package."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        raise BackendError(_NO_DRIVER) from None


class OutOfMemory(BackendError):
    """The GPU, or the host for pinned memory, has too little memory left."""


class Device:
    """One GPU and its primary context, which is shared with other libraries of this process.

    Raises
    ------
    MissingExtraError: cuda-python is not installed. BackendError: no driver, too old, or no GPU.
    """

    def __init__(self, ordinal: int = 0) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise MissingExtraError("a GPU backend", "cuda-python", "gpu") from error
        self.api = driver
        try:
            (error_code,) = driver.cuInit(0)
        except (RuntimeError, OSError):  # cuda.bindings found no libcuda
            raise BackendError(_NO_DRIVER) from None
        if error_code != 0:
            raise BackendError(
                f"the NVIDIA driver finds no usable GPU ({error_code.name}); check nvidia-smi, or "
                "use --backend cpu"
            )
        version = self.call("cuDriverGetVersion")
        if version < OLDEST_DRIVER:
            raise BackendError(
                f"the NVIDIA driver is too old: it knows CUDA {version // 1000}."
                f"{version % 1000 // 10}, and 12.0 is needed; update it to 525 or newer"
            )
        self.ordinal = ordinal
        self._device = self.call("cuDeviceGet", ordinal)
        self.name = self.call("cuDeviceGetName", 128, self._device).split(b"\0")[0].decode()
        which = driver.CUdevice_attribute
        self.capability = (
            self._attribute(which.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self._attribute(which.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        self.multiprocessors = self._attribute(which.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        self._users = 0
        self.retain()
        self.use()

    @property
    def arch(self) -> str:
        """The architecture, such as ``sm_86``."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    def _attribute(self, which: Any) -> int:
        return int(self.call("cuDeviceGetAttribute", which, self._device))

    def use(self) -> None:
        """Make the context current in the calling thread."""
        self.call("cuCtxSetCurrent", self._context)

    def retain(self) -> None:
        """Add a reference to the context."""
        if not self._users:
            self._context = self.call("cuDevicePrimaryCtxRetain", self._device)
        self._users += 1

    def release(self) -> None:
        """Drop a reference to the context; the last one releases it."""
        self._users -= 1
        if not self._users:
            self.call("cuDevicePrimaryCtxRelease", self._device)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a driver function and return its result; a failure becomes a BackendError."""
        error, *values = getattr(self.api, name)(*arguments)
        if error != 0:
            raise failure(name, error.name)
        return values[0] if values else None

    def free_bytes(self) -> tuple[int, int]:
        """Free and total device memory in bytes."""
        error, free, total = self.api.cuMemGetInfo()
        return (int(free), int(total)) if error == 0 else (0, 0)


def failure(name: str, code: str) -> BackendError:
    """Return the error for a driver call that answered ``code``."""
    if code == "CUDA_ERROR_OUT_OF_MEMORY":
        return OutOfMemory("the GPU is out of memory; close other programs that use it")
    if code in _STALE:
        return BackendError(
            f"the GPU's driver cannot load this bundle's kernels ({code}); update the driver, or "
            "rebuild the bundle here: python -m engine.build --fp16"
        )
    return BackendError(
        f"the CUDA driver answered {code} to {name}; restart the program, and the machine if it "
        "happens again"
    )


class Scope:
    """Hands out memory, streams, events and graphs; ``close`` releases all of them."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._stack = contextlib.ExitStack()

    def memory(self, size: int, what: str) -> int:
        """Return the address of ``size`` new bytes on the device, 256-byte aligned, not cleared."""
        try:
            address = int(self.device.call("cuMemAlloc", max(size, 1)))
        except OutOfMemory:
            raise out_of_memory(self.device, size, what) from None
        self.keep(self.device.call, "cuMemFree", address)
        return address

    def pinned(self, size: int, what: str) -> NDArray[np.uint8]:
        """Allocate ``size`` bytes of page-locked host memory, which the GPU can read and write."""
        try:
            address = int(self.device.call("cuMemHostAlloc", max(size, 1), 0))
        except OutOfMemory:
            raise OutOfMemory(
                f"no {size / 1e6:.1f} MB of pinned host memory left for {what}; free some memory"
            ) from None
        self.keep(self.device.call, "cuMemFreeHost", address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def stream(self) -> Stream:
        """Make a stream that does not wait for the default one."""
        flags = self.device.api.CUstream_flags.CU_STREAM_NON_BLOCKING
        handle = self.device.call("cuStreamCreate", int(flags))
        self.keep(self.device.call, "cuStreamDestroy", handle)
        return Stream(self.device, handle)

    def event(self) -> Event:
        """Make an event without a clock, the cheapest kind."""
        flags = self.device.api.CUevent_flags.CU_EVENT_DISABLE_TIMING
        handle = self.device.call("cuEventCreate", int(flags))
        self.keep(self.device.call, "cuEventDestroy", handle)
        return Event(self.device, handle)

    @contextlib.contextmanager
    def capture(self, stream: Stream) -> Iterator[list[Any]]:
        """Record what the block puts on ``stream``; the list then holds the executable graph.

        Other threads may allocate meanwhile: only this one is held to the rules of a capture, and
        the garbage collector, which might free memory here, waits.
        """
        call, api = self.device.call, self.device.api
        mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        graphs: list[Any] = []
        collecting = gc.isenabled()
        gc.disable()
        try:
            call("cuStreamBeginCapture", stream.handle, mode)
            try:
                yield graphs
            except BaseException:
                with contextlib.suppress(BackendError):
                    call("cuGraphDestroy", call("cuStreamEndCapture", stream.handle))
                raise
            graph = call("cuStreamEndCapture", stream.handle)
        finally:
            if collecting:
                gc.enable()
        try:
            graphs.append(call("cuGraphInstantiate", graph, 0))
        finally:
            call("cuGraphDestroy", graph)
        self.keep(call, "cuGraphExecDestroy", graphs[0])

    def keep(self, close: Callable[..., Any], *arguments: Any) -> None:
        """Call ``close(*arguments)`` when this scope is closed."""
        self._stack.callback(close, *arguments)

    def close(self) -> None:
        """Release everything, the latest first; closing twice is fine."""
        self._stack.close()


def out_of_memory(device: Device, size: int, what: str) -> OutOfMemory:
    """Return the error for ``size`` bytes that could not be allocated for ``what``."""
    free, total = device.free_bytes()
    return OutOfMemory(
        f"{device.name} is out of memory: {what} needs {size / 1e6:.1f} MB, {free / 1e6:.1f} of "
        f"{total / 1e6:.0f} MB are free; close other programs that use the GPU, follow fewer "
        "objects, or build for a smaller --size"
    )


class Stream:
    """A queue of work on the device. All its methods return at once but ``synchronize``."""

    def __init__(self, device: Device, handle: Any) -> None:
        self.device, self.handle = device, handle

    def __int__(self) -> int:
        return int(self.handle)

    def wait(self, event: Event) -> None:
        """Let later work on this stream wait for what ``event`` recorded last."""
        self.device.call("cuStreamWaitEvent", self.handle, event.handle, 0)

    def upload(self, target: int, source: NDArray[Any]) -> None:
        """Copy a contiguous pinned array to the device."""
        size = source.nbytes
        self.device.call("cuMemcpyHtoDAsync", target, source.ctypes.data, size, self.handle)

    def download(self, target: NDArray[Any], source: int) -> None:
        """Copy device memory into a contiguous pinned array."""
        size = target.nbytes
        self.device.call("cuMemcpyDtoHAsync", target.ctypes.data, source, size, self.handle)

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy ``size`` bytes within the device."""
        self.device.call("cuMemcpyDtoDAsync", target, source, size, self.handle)

    def clear(self, target: int, size: int) -> None:
        """Set ``size`` bytes to zero."""
        if size:
            self.device.call("cuMemsetD8Async", target, 0, size, self.handle)

    def launch(self, graph: Any) -> None:
        """Run a captured graph."""
        self.device.call("cuGraphLaunch", graph, self.handle)

    def synchronize(self) -> None:
        """Block until all work on the stream is done."""
        self.device.call("cuStreamSynchronize", self.handle)


class Event:
    """A mark in a stream that others can wait for."""

    def __init__(self, device: Device, handle: Any) -> None:
        self.device, self.handle = device, handle

    def record(self, stream: Stream) -> None:
        """Mark the work that is on ``stream`` now."""
        self.device.call("cuEventRecord", self.handle, stream.handle)

    def synchronize(self) -> None:
        """Block until the marked work is done."""
        self.device.call("cuEventSynchronize", self.handle)
