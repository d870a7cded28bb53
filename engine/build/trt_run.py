"""A bundle's engines on a GPU, stage by stage through host memory: for comparisons, not for speed.

The frame loop is in ``engine/runtime``. Never run on a GPU yet; the tests run it on stand-ins.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.build import targets
from engine.bundle import Bundle, Stage
from engine.errors import BackendError

Arrays = dict[str, NDArray[Any]]


class EngineStages:
    """The engines of ``bundle`` for ``target``; see ``runners.Runner``. Use with ``with``.

    Raises BackendError if an engine does not load, memory is short, or the driver refuses.
    """

    def __init__(self, bundle: Bundle, target: str) -> None:
        from cuda.bindings import runtime

        self._cuda = runtime
        self._allocated: list[int] = []
        self._stages = bundle.manifest.stages
        self.one_graph = "step" in self._stages
        module = targets.load(bundle.manifest.runtime)
        self._contexts: dict[str, Any] = {}
        try:
            self._stream = self._do(runtime.cudaStreamCreate())
            self._runtime = module.Runtime(module.Logger(module.Logger.ERROR))
            strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
            for name, stage in self._stages.items():
                file = bundle.path(stage.engines[target].file)
                engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
                if engine is None:
                    raise BackendError(
                        f"'{file}' does not load with {module.__name__} {module.__version__}, it "
                        f"was built with {bundle.manifest.runtime_version}; "
                        f"run: {bundle.manifest.rebuild_command()}"
                    )
                context = engine.create_execution_context(strategy)
                size = max(256, engine.device_memory_size_v2)
                context.set_device_memory(self._malloc(size), size)
                self._contexts[name] = context
        except BaseException:
            self.close()
            raise

    def run(self, stage: str, inputs: Arrays) -> Arrays:
        """Copy the inputs there, cast to what the engine takes, run it, and copy the outputs back.

        Open dimensions take the inputs' sizes.
        """
        declared, context = self._stages[stage], self._contexts[stage]
        held: list[int] = []
        kinds = self._cuda.cudaMemcpyKind
        try:
            for name, tensor in declared.inputs.items():
                array = np.ascontiguousarray(inputs[name], np.dtype(tensor.dtype))
                if -1 in tensor.shape:
                    context.set_input_shape(name, array.shape)
                held.append(self._malloc(array.nbytes))
                context.set_tensor_address(name, held[-1])
                up = kinds.cudaMemcpyHostToDevice
                self._do(self._cuda.cudaMemcpy(held[-1], array.ctypes.data, array.nbytes, up))
            outputs = self._outputs(declared, context)
            for name, array in outputs.items():
                held.append(self._malloc(array.nbytes))
                context.set_tensor_address(name, held[-1])
            if not context.execute_async_v3(int(self._stream)):
                raise BackendError(f"the engine of {stage} does not run; TensorRT's log says why")
            self._do(self._cuda.cudaStreamSynchronize(self._stream))
            for (_, array), address in zip(
                outputs.items(), held[len(declared.inputs) :], strict=True
            ):
                down = kinds.cudaMemcpyDeviceToHost
                self._do(self._cuda.cudaMemcpy(array.ctypes.data, address, array.nbytes, down))
            return outputs
        finally:
            for address in held:
                self._free(address)

    @staticmethod
    def _outputs(declared: Stage, context: Any) -> Arrays:
        return {
            name: np.empty(tuple(context.get_tensor_shape(name)), np.dtype(tensor.dtype))
            for name, tensor in declared.outputs.items()
        }

    def _malloc(self, size: int) -> int:
        address = int(self._do(self._cuda.cudaMalloc(size)))
        self._allocated.append(address)
        return address

    def _free(self, address: int) -> None:
        self._allocated.remove(address)
        self._cuda.cudaFree(address)

    def _do(self, result: tuple[Any, ...]) -> Any:
        """The value of a call of cuda-python; raises BackendError for an error code."""
        error, *values = result
        if int(error) != 0:
            raise BackendError(f"CUDA answered {error.name}; see nvidia-smi for driver and memory")
        return values[0] if values else None

    def close(self) -> None:
        """Release everything; closing twice is fine."""
        self._contexts.clear()
        for address in self._allocated[:]:
            self._free(address)
        if (stream := self.__dict__.pop("_stream", None)) is not None:
            self._cuda.cudaStreamDestroy(stream)

    def __enter__(self) -> EngineStages:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
