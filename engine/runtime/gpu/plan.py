"""One frame on the GPU: every buffer at a fixed address, and the stages as two captured graphs.

Why two: the slot that a frame is written to alternates, and the engines write their key and value
straight into it. Each *side* has its own execution contexts, bound once, its own input and mask
buffers, and its own graph, so nothing is rebound or copied from frame to frame, and the next frame
can be uploaded while this one is computed.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import BackendError
from engine.geometry import Geometry
from engine.runtime.base import StepInput
from engine.runtime.gpu.driver import Device, Scope, Stream
from engine.runtime.gpu.pool import Pool
from engine.runtime.gpu.program import Program
from engine.runtime.gpu.tensorrt import Context
from kernels import tiles

ALIGN = 256
SIDES = 2


def stage_range(name: str) -> AbstractContextManager[Any]:
    """A range in NVIDIA's profilers, if the package nvtx is installed.

    Within a replayed graph they show nothing: profile with ``graphs=False``.
    """
    nvtx = _nvtx()
    if nvtx is None:
        return nullcontext()
    annotated: AbstractContextManager[Any] = nvtx.annotate(name, domain="mobilevos")
    return annotated


@functools.cache
def _nvtx() -> Any:
    try:
        return importlib.import_module("nvtx")
    except ImportError:
        return None


@dataclass(frozen=True)
class Controls:
    """The small inputs of a frame, in one block that is uploaded in one piece."""

    objects: int
    reads: int

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype by name, in the block's order."""
        k = self.objects
        return {
            "slots": ((k, self.reads), np.int32),
            "labels": ((k + 1,), np.uint8),
            "use_given": ((k,), np.bool_),
            "active": ((k,), np.bool_),
        }

    def offsets(self) -> tuple[dict[str, int], int]:
        """Return where each field begins, and the block's size, in bytes."""
        found, end = {}, 0
        for name, (shape, dtype) in self.fields.items():
            found[name] = end
            end += -(-math.prod(shape) * np.dtype(dtype).itemsize // ALIGN) * ALIGN
        return found, end

    def views(self, block: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The fields of a block as arrays."""
        offsets, _ = self.offsets()
        return {
            name: block[offsets[name] :][: math.prod(shape) * np.dtype(dtype).itemsize]
            .view(dtype)
            .reshape(shape)
            for name, (shape, dtype) in self.fields.items()
        }

    @staticmethod
    def fill(views: dict[str, NDArray[Any]], task: StepInput) -> None:
        """Write a frame's controls; columns of the bucket beyond its objects are inactive."""
        used = len(task.slots)
        values: dict[str, NDArray[Any]] = {
            "slots": task.slots,
            "labels": task.labels,
            "use_given": task.use_given if task.given is not None else np.zeros(used, np.bool_),
            "active": np.ones(used, np.bool_),
        }
        empty = {"slots": -1}
        for name, field in views.items():
            field[...] = empty.get(name, 0)
            field[: len(values[name])] = values[name]


@dataclass
class Side:
    """What every second frame uses. ``graph``: captured, or None before the first run."""

    frame: int
    host_frame: NDArray[np.uint8]
    control: int
    host_control: NDArray[np.uint8]
    controls: dict[str, NDArray[Any]]  # the fields of host_control
    ids: int
    stages: list[tuple[str, Callable[[Stream], None]]]
    contexts: list[Context]
    graph: Any = None


class Plan:
    """Everything that a step needs, for one source size, bucket, pool and number of reads.

    Raises OutOfMemory if it does not fit.
    """

    def __init__(
        self, device: Device, program: Program, pool: Pool, geometry: Geometry, reads: int
    ) -> None:
        self.device, self.program, self.pool, self.geometry = device, program, pool, geometry
        self.controls = Controls(program.objects, reads)
        self.reads = reads
        self.tensors = program.tensors(geometry)
        self.shared = program.buffers(self.tensors)
        self._scope = Scope(device)
        try:
            self._allocate()
            self.sides = [self._side(write) for write in range(SIDES)]
        except BaseException:
            self._scope.close()
            raise

    def _allocate(self) -> None:
        """Allocate what both sides share: the compute stream runs one frame after the other."""
        program, scope = self.program, self._scope
        k, n = program.objects, self.geometry.tokens
        self.buffers = {
            name: scope.memory(tensor.bytes, f"'{name}'") for name, tensor in self.shared.items()
        }
        self.scratch = scope.memory(program.scratch, "TensorRT's activations")
        kernel = program.kernels["memory_read"]
        plan = tiles.tile_memory_read(
            program.precision,
            n,
            program.key_dim,
            program.value_dim,
            k,
            self.reads,
            arch=kernel.metadata["target"],
            multiprocessors=self.device.multiprocessors,
        )
        self.splits = plan.splits
        parts = plan.splits * k * n * 4 if plan.splits > 1 else 0
        self.partial = scope.memory(parts * program.value_dim, "the memory read's parts")
        self.lse = scope.memory(parts, "the memory read's weights")
        self.host_ids = scope.pinned(math.prod(self.geometry.source), "the mask")
        scores = scope.pinned(self.shared["scores"].bytes, "the scores")
        self.host_scores = scores.view(np.float32).reshape(k, 2)

    def _side(self, write: int) -> Side:
        scope, frame_bytes = self._scope, math.prod(self.geometry.source) * 3
        offsets, control_bytes = self.controls.offsets()
        control = scope.memory(control_bytes, "the controls")
        host_control = scope.pinned(control_bytes, "the controls")
        side = Side(
            frame=scope.memory(frame_bytes, "a frame"),
            host_frame=scope.pinned(frame_bytes, "a frame"),
            control=control,
            host_control=host_control,
            controls=self.controls.views(host_control),
            ids=scope.memory(math.prod(self.geometry.source), "a mask"),
            stages=[],
            contexts=[],
        )
        addresses = self.buffers | {name: control + at for name, at in offsets.items()}
        side.stages = self._stages(side, write, addresses)
        return side

    def _stages(
        self, side: Side, write: int, addresses: dict[str, int]
    ) -> list[tuple[str, Callable[[Stream], None]]]:
        program, pool = self.program, self.pool
        key, value = pool.key(write), pool.value(write)
        if "key" not in self.shared:
            addresses = addresses | {"key": key, "value": value}
        (h0, w0), (h, w) = self.geometry.source, self.geometry.network
        rows, columns = self.geometry.padded
        kernels, k, n = program.kernels, program.objects, self.geometry.tokens

        def preprocess(stream: Stream) -> None:
            kernels["preprocess"](
                stream.handle,
                frame=side.frame,
                out=addresses["image"],
                height_in=h0,
                width_in=w0,
                height=h,
                width=w,
                rows=rows,
                columns=columns,
            )

        def read_memory(stream: Stream) -> None:
            kernels["memory_read"](
                stream.handle,
                query=addresses["key"],
                keys=pool.keys,
                values=pool.values,
                slots=addresses["slots"],
                out=addresses["readout"],
                partial=self.partial,
                lse=self.lse,
                positions=n,
                objects=k,
                reads=self.reads,
                capacity=pool.shape.slots,
                splits=self.splits,
            )
            if self.splits > 1:
                kernels["memory_read_merge"](
                    stream.handle,
                    partial=self.partial,
                    lse=self.lse,
                    out=addresses["readout"],
                    rows=k * n,
                    splits=self.splits,
                )

        def mask_head(stream: Stream) -> None:
            kernels["mask_head"](
                stream.handle,
                probabilities=addresses["probabilities"],
                ids=addresses["labels"],
                out=side.ids,
                channels=k + 1,
                rows=rows,
                columns=columns,
                height=h,
                width=w,
                height_out=h0,
                width_out=w0,
            )

        def write_memory(stream: Stream) -> None:
            stream.copy(key, addresses["key"], pool.shape.key_bytes)
            stream.copy(value, addresses["value"], pool.shape.value_bytes)

        network = [
            ("encode_query", self._context(side, "encode_query", addresses).run),
            ("read_memory", read_memory),
            ("decode", self._context(side, "decode", addresses).run),
        ]
        if "key" in self.shared:
            network.append(("write_memory", write_memory))
        return [("preprocess", preprocess), *network, ("mask_head", mask_head)]

    def _context(self, side: Side, stage: str, addresses: dict[str, int]) -> Context:
        context = self.program.context(stage, addresses, self.scratch, self.tensors)
        side.contexts.append(context)
        return context

    def run(self, side: Side, stream: Stream) -> None:
        """Put the stages of one frame on ``stream``, one by one."""
        for name, launch in side.stages:
            with stage_range(name):
                launch(stream)

    def capture(self, side: Side, stream: Stream) -> None:
        """Record the stages as a graph. Each engine must have run once before."""
        if not all(context.capturable(stream) for context in side.contexts):
            raise BackendError(
                "TensorRT cannot run this bundle inside a CUDA graph; build it without --dynamic"
            )
        with self._scope.capture(stream) as graphs:
            self.run(side, stream)
        side.graph = graphs[0]

    def close(self) -> None:
        """Release all memory and graphs; nothing on the device may still use them."""
        for side in self.sides:  # the stages know their side: a cycle
            side.stages.clear()
            side.contexts.clear()
        self._scope.close()
