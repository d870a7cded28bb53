"""``cuda.bindings.driver`` in front of a :class:`machine.Machine`: the calls in use, no others.

Parameters are named as the real ones are, which a test compares. Every function returns a tuple
that begins with a CUresult.
"""

from __future__ import annotations

from typing import Any

from cuda.bindings import driver as real

from doubles.code import Code
from doubles.machine import Graph, Machine

OK = real.CUresult.CUDA_SUCCESS
_R = real.CUresult
#: What a capture does not survive.
_UNSAFE = _R.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED


class Driver:
    """The module. ``answers``: results to give instead, by function name."""

    CUresult = real.CUresult
    CUstream = real.CUstream
    CUstream_flags = real.CUstream_flags
    CUevent_flags = real.CUevent_flags
    CUstreamCaptureMode = real.CUstreamCaptureMode
    CUdevice_attribute = real.CUdevice_attribute
    CUfunction_attribute = real.CUfunction_attribute

    def __init__(self, machine: Machine, code: Code, capability: tuple[int, int] = (8, 6)) -> None:
        self.machine, self.code, self.capability = machine, code, capability
        self.version = 13000
        self.answers: dict[str, Any] = {}
        self.functions: dict[int, tuple[int, str]] = {}

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("cu") and name in self.answers:
            answer = self.answers[name]
            return lambda *_: (answer,)
        return found

    def _capture_breaks(self) -> bool:
        """Whether a capture is under way, which the call in question makes invalid."""
        for graph in self.machine.capturing.values():
            graph.valid = False
        return bool(self.machine.capturing)

    def cuInit(self, Flags: int) -> tuple[Any, ...]:
        return (OK,)

    def cuDriverGetVersion(self) -> tuple[Any, ...]:
        return OK, self.version

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return OK, ordinal

    def cuDeviceGetName(self, length: int, dev: Any) -> tuple[Any, ...]:
        return OK, b"NVIDIA Stand-in".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attrib: Any, dev: Any) -> tuple[Any, ...]:
        which = real.CUdevice_attribute
        return OK, {
            which.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: self.capability[0],
            which.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: self.capability[1],
            which.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: 84,
        }[attrib]

    def cuDevicePrimaryCtxRetain(self, dev: Any) -> tuple[Any, ...]:
        self.machine.contexts += 1
        return OK, 7

    def cuDevicePrimaryCtxRelease(self, dev: Any) -> tuple[Any, ...]:
        assert self.machine.contexts > 0
        self.machine.contexts -= 1
        return (OK,)

    def cuCtxSetCurrent(self, ctx: Any) -> tuple[Any, ...]:
        assert ctx == 7 and self.machine.contexts > 0
        return (OK,)

    def cuCtxGetDevice(self) -> tuple[Any, ...]:
        return OK, 0

    def cuMemGetInfo(self) -> tuple[Any, ...]:
        used = sum(b.size for b in self.machine.blocks.values() if b.kind == "device")
        return OK, self.machine.total - used, self.machine.total

    def cuMemAlloc(self, bytesize: int) -> tuple[Any, ...]:
        if self._capture_breaks():
            return (_UNSAFE, None)
        address = self.machine.allocate(bytesize, "device")
        if address is None:
            return (_R.CUDA_ERROR_OUT_OF_MEMORY, None)
        return OK, real.CUdeviceptr(address)

    def cuMemFree(self, dptr: Any) -> tuple[Any, ...]:
        if self._capture_breaks():
            return (_UNSAFE,)
        self.machine.free(int(dptr), "device")
        return (OK,)

    def cuMemHostAlloc(self, bytesize: int, Flags: int) -> tuple[Any, ...]:
        if self._capture_breaks():
            return (_UNSAFE, None)
        return OK, self.machine.allocate(bytesize, "pinned")

    def cuMemFreeHost(self, p: int) -> tuple[Any, ...]:
        if self._capture_breaks():
            return (_UNSAFE,)
        self.machine.free(int(p), "pinned")
        return (OK,)

    def _copy(
        self, name: str, target: tuple[int, str], source: tuple[int, str], size: int, stream: Any
    ) -> tuple[Any, ...]:
        view = self.machine.view
        view(target[0], size, target[1])
        view(source[0], size, source[1])

        def run() -> None:
            view(target[0], size, target[1])[:] = view(source[0], size, source[1])

        self.machine.put(int(stream), name, run)
        return (OK,)

    def cuMemcpyHtoDAsync(
        self, dstDevice: Any, srcHost: int, ByteCount: int, hStream: Any
    ) -> tuple[Any, ...]:
        target, source = (int(dstDevice), "device"), (int(srcHost), "pinned")
        return self._copy("upload", target, source, ByteCount, hStream)

    def cuMemcpyDtoHAsync(
        self, dstHost: int, srcDevice: Any, ByteCount: int, hStream: Any
    ) -> tuple[Any, ...]:
        target, source = (int(dstHost), "pinned"), (int(srcDevice), "device")
        return self._copy("download", target, source, ByteCount, hStream)

    def cuMemcpyDtoDAsync(
        self, dstDevice: Any, srcDevice: Any, ByteCount: int, hStream: Any
    ) -> tuple[Any, ...]:
        target, source = (int(dstDevice), "device"), (int(srcDevice), "device")
        return self._copy("copy", target, source, ByteCount, hStream)

    def cuMemsetD8Async(self, dstDevice: Any, uc: int, N: int, hStream: Any) -> tuple[Any, ...]:
        address = int(dstDevice)
        self.machine.view(address, N)
        self.machine.put(int(hStream), "clear", lambda: self.machine.view(address, N).fill(uc))
        return (OK,)

    def cuStreamCreate(self, Flags: int) -> tuple[Any, ...]:
        assert Flags == int(real.CUstream_flags.CU_STREAM_NON_BLOCKING)
        handle = self.machine.handle()
        self.machine.streams[handle] = []
        return OK, real.CUstream(handle)

    def cuStreamDestroy(self, hStream: Any) -> tuple[Any, ...]:
        self.machine.finish_stream(int(hStream))
        del self.machine.streams[int(hStream)]
        return (OK,)

    def cuStreamSynchronize(self, hStream: Any) -> tuple[Any, ...]:
        if self._capture_breaks():
            return (_UNSAFE,)
        self.machine.finish_stream(int(hStream))
        return (OK,)

    def cuStreamWaitEvent(self, hStream: Any, hEvent: Any, Flags: int) -> tuple[Any, ...]:
        assert int(hStream) not in self.machine.capturing, "not in use inside captures"
        self.machine.wait(int(hStream), int(hEvent))
        return (OK,)

    def cuEventCreate(self, Flags: int) -> tuple[Any, ...]:
        handle = self.machine.handle()
        self.machine.events[handle] = None
        return OK, real.CUevent(handle)

    def cuEventDestroy(self, hEvent: Any) -> tuple[Any, ...]:
        del self.machine.events[int(hEvent)]
        return (OK,)

    def cuEventRecord(self, hEvent: Any, hStream: Any) -> tuple[Any, ...]:
        assert int(hStream) not in self.machine.capturing, "not in use inside captures"
        self.machine.record(int(hEvent), int(hStream))
        return (OK,)

    def cuEventSynchronize(self, hEvent: Any) -> tuple[Any, ...]:
        if self._capture_breaks():
            return (_UNSAFE,)
        self.machine.finish_event(int(hEvent))
        return (OK,)

    def cuStreamBeginCapture(self, hStream: Any, mode: Any) -> tuple[Any, ...]:
        assert isinstance(mode, real.CUstreamCaptureMode)
        self.machine.capturing[int(hStream)] = Graph()
        return (OK,)

    def cuStreamEndCapture(self, hStream: Any) -> tuple[Any, ...]:
        graph = self.machine.capturing.pop(int(hStream))
        if not graph.valid:
            return (_R.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None)
        handle = self.machine.handle()
        self.machine.graphs[handle] = graph
        return OK, real.CUgraph(handle)

    def cuGraphInstantiate(self, hGraph: Any, flags: int) -> tuple[Any, ...]:
        handle = self.machine.handle()
        graph = self.machine.graphs[int(hGraph)]
        self.machine.executables[handle] = Graph(list(graph.ops))
        return OK, real.CUgraphExec(handle)

    def cuGraphDestroy(self, hGraph: Any) -> tuple[Any, ...]:
        del self.machine.graphs[int(hGraph)]
        return (OK,)

    def cuGraphExecDestroy(self, hGraphExec: Any) -> tuple[Any, ...]:
        del self.machine.executables[int(hGraphExec)]
        return (OK,)

    def cuGraphLaunch(self, hGraphExec: Any, hStream: Any) -> tuple[Any, ...]:
        self.machine.launch(self.machine.executables[int(hGraphExec)], int(hStream))
        return (OK,)

    def cuLibraryLoadData(
        self,
        code: Any,
        jitOptions: Any,
        jitOptionsValues: Any,
        numJitOptions: int,
        libraryOptions: Any,
        libraryOptionValues: Any,
        numLibraryOptions: int,
    ) -> tuple[Any, ...]:
        if self._capture_breaks():
            return (_UNSAFE, None)
        handle = self.machine.handle()
        self.machine.libraries[handle] = bytes(code)
        return OK, handle

    def cuLibraryUnload(self, library: Any) -> tuple[Any, ...]:
        del self.machine.libraries[int(library)]
        return (OK,)

    def cuLibraryGetKernel(self, library: Any, name: bytes) -> tuple[Any, ...]:
        if name not in self.machine.libraries[int(library)]:
            return (_R.CUDA_ERROR_NOT_FOUND, None)
        handle = self.machine.handle()
        self.functions[handle] = (int(library), name.decode())
        return OK, handle

    def cuKernelSetAttribute(self, attrib: Any, val: int, kernel: Any, dev: Any) -> tuple[Any, ...]:
        return (OK,)

    def cuKernelGetFunction(self, kernel: Any) -> tuple[Any, ...]:
        return OK, kernel

    def cuLaunchKernel(
        self,
        f: Any,
        gridDimX: int,
        gridDimY: int,
        gridDimZ: int,
        blockDimX: int,
        blockDimY: int,
        blockDimZ: int,
        sharedMemBytes: int,
        hStream: Any,
        kernelParams: Any,
        extra: Any,
    ) -> tuple[Any, ...]:
        library, _ = self.functions[int(f)]
        image = self.machine.libraries[library]  # a KeyError: the library was unloaded
        grid, block = (gridDimX, gridDimY, gridDimZ), (blockDimX, blockDimY, blockDimZ)
        run = self.code.launch(image, grid, block, kernelParams)
        self.machine.put(int(hStream), self.code.metadata(image)["op"], run)
        return (OK,)
