"""The GPU backends ``tensorrt`` and ``tensorrt-rtx``: a bundle's engines and kernels, replayed as
one CUDA graph a frame. No torch and no Triton.

Three streams. ``upload`` brings the frame and a small block of controls to the device, ``compute``
replays the frame's graph, ``download`` fetches mask and scores. While a frame is computed the next
one, if it is known (``expect``), is copied and uploaded. A step waits for its own mask, since which
slots the next frame reads may depend on this frame's scores; so nothing but that next frame is in
flight when a step begins, and four events order all there is:

    upload ──ready──→ compute ──computed──→ download ──done──→ host
    another library's stream ──produced──→ upload
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import BackendError
from engine.geometry import Geometry
from engine.runtime.base import StepInput
from engine.runtime.gpu import arrays
from engine.runtime.gpu.driver import Scope
from engine.runtime.gpu.plan import Plan, Side, stage_range
from engine.runtime.gpu.pool import Pool, PoolShape, fetch
from engine.runtime.gpu.program import Library, Program

F32 = NDArray[np.float32]
_SMALLEST_POOL = 4  # slots


class CudaBackend:
    """See :class:`engine.runtime.base.Backend`.

    library: the bundles to choose from, by the video's size and the number of objects; closed with
        this backend.
    graphs: replay a captured graph; else launch the stages one by one, as a profiler wants, and as
        is done with a RuntimeWarning where the capture fails.
    """

    on_gpu = True

    def __init__(self, library: Library, graphs: bool = True) -> None:
        self.name, self.library, self.graphs = library.backend, library, graphs
        self.device = library.device
        self._scope = Scope(self.device)
        self.upload, self.compute, self.download = (self._scope.stream() for _ in range(3))
        self.ready, self.computed, self.done, self.produced = (
            self._scope.event() for _ in range(4)
        )
        self._program: Program | None = None  # of the bucket in use
        self._pool: Pool | None = None
        self._plan: Plan | None = None
        self._objects = self._slots = 0
        self._soft: F32 | None = None  # of a step whose plan is gone, as more slots were needed
        self._expected: Any = None  # the next frame, as the caller said
        self._staged: tuple[Any, Side] | None = None  # the frame whose upload has begun
        self._borrowed: list[Any] = []  # other libraries' frames that are being read
        self._closed = False

    def open(self, geometry: Geometry) -> None:
        self.device.use()
        self.library.find(geometry, 1)
        self._drop_plan()
        self._drop_pool()
        self.geometry = geometry

    def arrange(self, columns: Sequence[int], slots: int) -> None:
        self.device.use()
        old = self._pool
        # What is in memory is of one precision: other buckets must be of the same.
        precision = self._program.precision if old and self._program else None
        program = self.library.program(self.geometry, max(len(columns), 1), precision)
        shape = PoolShape(
            max(slots, _SMALLEST_POOL),
            program.objects,
            self.geometry.tokens,
            program.key_dim,
            program.value_dim,
            program.dtype,
        )
        if old is None:
            self._pool = Pool(self.device, shape, self.compute)
        elif old.shape != shape:
            self._pool = self._moved(old, shape, columns)
            soft = self.probabilities() if list(columns) == list(range(self._objects)) else None
            self._drop_plan()  # its graphs hold the old pool's addresses
            self._soft = soft
            self.compute.synchronize()
            old.close()
        elif any(c not in (i, -1) for i, c in enumerate(columns)):
            spare = self._moved(old, shape, columns)
            old.take(spare, range(shape.objects))
            self.compute.synchronize()
            spare.close()
        else:
            old.clear_columns([i for i, c in enumerate(columns) if c < 0])
        self._program, self._objects, self._slots = program, len(columns), slots

    def _moved(self, old: Pool, shape: PoolShape, columns: Sequence[int]) -> Pool:
        """Make a pool of another shape with the old one's content; columns as in ``arrange``."""
        pool = Pool(self.device, shape, self.compute)
        pool.take(old, columns)
        return pool

    def expect(self, frame: Any) -> None:
        """Announce the frame of the step after the next; the next one uploads it."""
        self._expected = frame

    def step(self, task: StepInput) -> Any:
        self.device.use()
        expected, self._expected = self._expected, None
        plan = self._planned(task)
        side, other = plan.sides[task.write], plan.sides[1 - task.write]
        with self._borrowing() as scope, stage_range("frame"):
            staged, self._staged = self._staged, None
            if staged is None or staged[0] is not task.frame or staged[1] is not side:
                # A frame that was expected and did not come is overwritten, in the stream's order.
                self._stage(task.frame, side)
            plan.controls.fill(side.controls, task)
            self.upload.upload(side.control, side.host_control)
            if task.given is not None:
                given = scope.pinned(task.given.nbytes, "given masks")
                given[:] = task.given.reshape(-1).view(np.uint8)
                self.upload.upload(plan.buffers["given"], given)
            self.ready.record(self.upload)

            self.compute.wait(self.ready)
            self._launch(plan, side)
            self.computed.record(self.compute)

            mask = arrays.DeviceMask(self.device, self.geometry.source) if task.on_gpu else None
            self.download.wait(self.computed)
            if mask is None:
                self.download.download(plan.host_ids, side.ids)
            else:
                self.download.copy(mask.address, side.ids, math.prod(mask.shape))
            self.download.download(plan.host_scores, plan.buffers["scores"])
            self.done.record(self.download)
            borrowed, self._borrowed = self._borrowed, []
            if expected is not None:
                self._stage(expected, other)
                self._staged = expected, other
            self.done.synchronize()
            borrowed.clear()
        return plan.host_ids.reshape(self.geometry.source).copy() if mask is None else mask

    @contextlib.contextmanager
    def _borrowing(self) -> Iterator[Scope]:
        """A scope for one step: after an error in it, nothing on the GPU uses its memory."""
        with contextlib.closing(Scope(self.device)) as scope:
            try:
                yield scope
            except BaseException:
                with contextlib.suppress(BackendError):
                    self.upload.synchronize()
                raise

    def _planned(self, task: StepInput) -> Plan:
        reads = task.slots.shape[1]
        if self._plan is not None and self._plan.reads != reads:
            self._drop_plan()
        assert self._program and self._pool, "arrange comes before step"
        if self._plan is None:
            self._plan = Plan(self.device, self._program, self._pool, self.geometry, reads)
        return self._plan

    def _stage(self, frame: Any, side: Side) -> None:
        """Begin to upload a frame [H0, W0, 3] that lies on the host or on the GPU."""
        with stage_range("upload"):
            if arrays.on_device(frame):
                theirs = arrays.import_frame(frame, self.device, self.upload, self.produced)
                self._borrowed.append(theirs)
                self.upload.copy(side.frame, theirs.address, side.host_frame.nbytes)
            else:
                np.copyto(side.host_frame.reshape(frame.shape), frame)
                self.upload.upload(side.frame, side.host_frame)

    def _launch(self, plan: Plan, side: Side) -> None:
        """Replay the side's graph; the first time run the stages one by one, then capture them."""
        if side.graph is not None:
            self.compute.launch(side.graph)
            return
        plan.run(side, self.compute)
        if self.graphs:
            try:
                plan.capture(side, self.compute)
            except BackendError as error:  # the frame is on its way all the same
                self.graphs = False
                warnings.warn(
                    f"every frame is launched stage by stage, which is slower, since: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def to_gpu(self, mask: NDArray[np.uint8]) -> Any:
        self.device.use()
        return arrays.DeviceMask.of(self.device, mask, self.compute)

    def copy(self, source: int, target: int) -> None:
        assert self._pool is not None, "arrange comes before copy"
        self.device.use()
        self._pool.copy(source, target)

    def probabilities(self) -> F32:
        shape = (self._objects + 1, *self.geometry.padded)
        if self._plan is None:
            return np.zeros(shape, np.float32) if self._soft is None else self._soft
        self.device.use()
        dtype = self._plan.shared["probabilities"].dtype
        soft = fetch(self.compute, self._plan.buffers["probabilities"], shape, dtype)
        return soft.astype(np.float32, copy=False)

    def scores(self) -> F32:
        if self._plan is None:
            return np.zeros((self._objects, 2), np.float32)
        return self._plan.host_scores[: self._objects].copy()

    def export_memory(self) -> tuple[F32, F32]:
        if self._pool is None:
            raise BackendError("there is no memory yet; call start first")
        self.device.use()
        keys, values = self._pool.read(self._objects)
        return keys[: self._slots], values[: self._slots]

    def import_memory(self, keys: F32, values: F32) -> None:
        self.arrange([-1] * values.shape[1], len(keys))
        assert self._pool is not None
        self._pool.write(keys, values)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # After a lost device every call fails: what cannot be given back is gone with it.
        with contextlib.suppress(BackendError):
            self.device.use()
            self._drop_plan()
            self._drop_pool()
        with contextlib.suppress(BackendError):
            self._scope.close()
        self.library.close()

    def _drop_plan(self) -> None:
        plan, self._plan = self._plan, None
        if plan is not None:
            # What is still in flight: a staged frame, and copies within the memory.
            self.upload.synchronize()
            self.compute.synchronize()
            plan.close()
        self._staged = self._expected = self._soft = None
        self._borrowed.clear()

    def _drop_pool(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            self.compute.synchronize()
            pool.close()
        self._objects = self._slots = 0
