"""TensorRT and TensorRT for RTX at run time, behind one thin wrapper.

An engine file is executable content: load only bundles that you trust (`engine.bundle`).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import BackendError, MissingExtraError, ModelError, OutputError
from engine.files import write_atomic
from engine.runtime.gpu.driver import Device, OutOfMemory, Stream

MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}


class TensorRT:
    """TensorRT's runtime: it turns engine files into engines.

    Raises MissingExtraError if ``backend``, a key of :data:`MODULES`, is not installed.
    """

    def __init__(self, backend: str, device: Device) -> None:
        try:
            self.api: Any = importlib.import_module(MODULES[backend])
        except ImportError as error:
            raise MissingExtraError(f"backend '{backend}'", MODULES[backend], "gpu") from error
        self.backend, self.device = backend, device
        self.logger = self.api.Logger(self.api.Logger.ERROR)
        self.runtime = self.api.Runtime(self.logger)

    def load(self, file: Path, remedy: str) -> Engine:
        """Deserialise an engine's file, whose hash was checked.

        Raises ModelError, which ends with ``remedy``, for an engine of another version or GPU.
        """
        engine = self.runtime.deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            raise ModelError(
                f"{self.backend} {self.api.__version__} cannot load '{file}' on "
                f"{self.device.name} ({self.device.arch}): it was built for another version or "
                f"GPU; {remedy}"
            )
        return Engine(self, engine, file, remedy)


class Engine:
    """A deserialised engine. ``scratch``: bytes of device memory that a run of it needs."""

    def __init__(self, tensorrt: TensorRT, engine: Any, file: Path, remedy: str) -> None:
        self.tensorrt, self.engine, self.file, self.remedy = tensorrt, engine, file, remedy
        self.scratch = int(engine.device_memory_size_v2)
        self.tensors = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]

    def context(
        self,
        scratch: int,
        addresses: Mapping[str, int],
        shapes: Mapping[str, tuple[int, ...]],
        cache: RuntimeCache | None = None,
    ) -> Context:
        """Make what a run of the engine needs, with its tensors at fixed addresses.

        scratch: the address of at least :attr:`scratch` bytes; runs that follow each other on one
        stream may share it. addresses: of every tensor of the engine, by name. shapes: for the
        inputs whose shape the engine leaves open.
        """
        strategy = self.tensorrt.api.ExecutionContextAllocationStrategy.USER_MANAGED
        if cache is None:
            context = self.engine.create_execution_context(strategy)
        else:
            config = self.engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            cache.attach(config)
            if shapes:  # at once, not in the background: a graph records what there is
                kinds = self.tensorrt.api.DynamicShapesKernelSpecializationStrategy
                config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
            context = self.engine.create_execution_context(config)
        if context is None:
            raise OutOfMemory(f"no memory left for a run of '{self.file.name}'; free GPU memory")
        context.set_device_memory(scratch, self.scratch)
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise ModelError(f"'{self.file}' refuses '{name}' of {shape}; {self.remedy}")
        for name in self.tensors:
            if name not in addresses:
                raise ModelError(f"'{self.file}' wants an unknown tensor '{name}'; {self.remedy}")
            if not context.set_tensor_address(name, addresses[name]):
                raise ModelError(f"'{self.file}' refuses the address of '{name}'; {self.remedy}")
        return Context(self, context)


class Context:
    """An engine bound to its tensors' addresses, which never change: a graph holds them."""

    def __init__(self, engine: Engine, context: Any) -> None:
        self.engine, self._context = engine, context

    def run(self, stream: Stream) -> None:
        """Put one run on ``stream``; raises BackendError if it is refused."""
        if not self._context.execute_async_v3(int(stream)):
            raise BackendError(
                f"TensorRT refused to run '{self.engine.file.name}'; {self.engine.remedy}"
            )

    def capturable(self, stream: Stream) -> bool:
        """Whether a CUDA graph can record the run. TensorRT says yes for all graphs of ours."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(int(stream)))


class RuntimeCache:
    """Kernels that TensorRT for RTX compiled on this machine, kept beside the bundle.

    Without it, every start of a program compiles them anew. What the file holds is checked by
    TensorRT against GPU, driver and version; where it does not fit, it is written anew.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._cache: Any = None
        self._before = b""

    def attach(self, config: Any) -> None:
        """Let a runtime configuration read the cache and add to it."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with contextlib.suppress(OSError):
                self._before = self.file.read_bytes()
                self._cache.deserialize(self._before)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file if the cache has changed; a folder that is read-only is no error."""
        if self._cache is None:
            return
        data = bytes(memoryview(self._cache.serialize()))
        if data != self._before:
            with contextlib.suppress(OutputError):
                write_atomic(self.file, data)
                self._before = data
