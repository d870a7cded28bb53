"""``tensorrt_rtx`` in host memory: engines run in ONNX Runtime, on the graphs they were built from.

Methods and parameters are named as the real ones are, which a test compares.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import tensorrt_rtx as real

from doubles.machine import Machine, Misuse

ALIGN = 256  # of tensors' addresses and of the activations
NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
    "tensor(int32)": np.int32,
}


class Module:
    """The module. ``graphs``: what an engine does, by its SHA-256."""

    DynamicShapesKernelSpecializationStrategy = real.DynamicShapesKernelSpecializationStrategy
    ExecutionContextAllocationStrategy = real.ExecutionContextAllocationStrategy
    __version__ = real.__version__

    def __init__(self, machine: Machine, scratch: int = 4096) -> None:
        self.machine, self.scratch = machine, scratch
        self.graphs: dict[str, Graph | Toy] = {}
        self.live_contexts = 0

    def learn(self, engine: bytes, graph: Graph | Toy) -> None:
        self.graphs[hashlib.sha256(engine).hexdigest()] = graph

    class Logger:
        ERROR = real.Logger.ERROR

        def __init__(self, min_severity: Any) -> None:
            pass

    def Runtime(self, logger: Any) -> Runtime:
        return Runtime(self)


class Runtime:
    def __init__(self, module: Module) -> None:
        self.module = module

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if self.module.machine.capturing:
            raise Misuse("an engine is loaded inside a capture")
        graph = self.module.graphs.get(hashlib.sha256(serialized_engine).hexdigest())
        return ICudaEngine(self.module, graph) if graph else None


class Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: Any


class Graph:
    """An ONNX file in ONNX Runtime."""

    def __init__(self, file: Path) -> None:
        self.name = file.stem
        self.open: set[str] = set()
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = (
            {t.name: Tensor(t.name, tuple(t.shape), NUMPY[t.type]) for t in side}
            for side in (self._session.get_inputs(), self._session.get_outputs())
        )

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return list(self._session.run(list(self.outputs), feeds))


class Toy:
    """An engine that is no network: every output depends strongly on all of every input."""

    def __init__(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        self.name = name
        self.open: set[str] = set()
        self.inputs = {t.name: t for t in inputs}
        self.outputs = {t.name: t for t in outputs}

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        phase = 0.0
        for i, x in enumerate(feeds.values()):
            flat = np.nan_to_num(x.astype(np.float64).ravel(), nan=7.0)
            phase += (i + 1) * float(flat @ np.cos(np.arange(flat.size))) / (1 + flat.size**0.5)
        return [
            np.sin(np.arange(np.prod(t.shape)) * (0.01 + 0.003 * i) + phase).reshape(t.shape)
            for i, t in enumerate(self.outputs.values())
        ]


class ICudaEngine:
    def __init__(self, module: Module, graph: Graph | Toy) -> None:
        self.module, self.graph = module, graph
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self.names)
        self.device_memory_size_v2 = module.scratch

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: Any = None) -> IExecutionContext:
        strategy = getattr(runtime_config, "strategy", runtime_config)
        # Engines for captured graphs are built to ask for this.
        assert strategy == real.ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self)


class IRuntimeConfig:
    strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None
    cache: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class IRuntimeCache:
    def __init__(self) -> None:
        self.content = b"nothing yet"

    def serialize(self) -> bytes:
        return b"compiled kernels"

    def deserialize(self, blob: bytes) -> bool:
        self.content = bytes(blob)
        return self.content == b"compiled kernels"


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine, self.module = engine, engine.module
        self.machine = engine.module.machine
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.runs = 0
        self.module.live_contexts += 1

    def __del__(self) -> None:
        self.module.live_contexts -= 1

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % ALIGN == 0 and size >= self.engine.device_memory_size_v2
        self.machine.view(memory, size)
        self.memory = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return self.shapes[name] == self.engine.inputs[name].shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory % ALIGN == 0, f"{name} must be aligned to {ALIGN} bytes"
        self.addresses[name] = memory
        return name in self.engine.names

    def is_stream_capturable(self, stream: int) -> bool:
        return self.runs > 0  # the documentation asks for one run before

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self.engine
        if self.machine.capturing and not self.runs:
            raise Misuse("the first run of a context allocates: it must not be captured")
        if engine.graph.open - self.shapes.keys():
            raise Misuse(f"inputs without a shape: {engine.graph.open - self.shapes.keys()}")
        self.runs += 1
        addresses, memory = dict(self.addresses), self.memory
        inputs = {n: self._view(t, addresses) for n, t in engine.inputs.items()}
        outputs = {n: self._view(t, addresses) for n, t in engine.outputs.items()}
        for name, x in outputs.items():
            if any(np.shares_memory(x, y) for y in inputs.values()):
                raise Misuse(f"the output {name} lies in an input")

        def run() -> None:
            self.machine.view(*memory)[:] = 0xAA  # whatever shared it is gone
            feeds = {n: self._view(t, addresses) for n, t in engine.inputs.items()}
            results = engine.graph.run(feeds)
            for t, result in zip(engine.outputs.values(), results, strict=True):
                self._view(t, addresses)[...] = result

        self.machine.put(stream_handle, engine.graph.name, run)
        return True

    def _view(self, tensor: Tensor, addresses: dict[str, int]) -> np.ndarray:
        return self.machine.array(addresses[tensor.name], tensor.shape, tensor.dtype)
