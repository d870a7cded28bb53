"""``Segmenter``: follow objects through a video, a frame at a time. The loop and nothing else.

Longer than other files, because every public method states its contract."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from engine import runtime
from engine.confidence import LostWatch
from engine.errors import BackendError, EngineError, InputError, StateError, one_line
from engine.geometry import Geometry, masks_to_network, probabilities_to_source
from engine.intake import (
    FrameLike,
    Mask,
    check_mask,
    check_output,
    own_frame,
    shape_text,
    take_frame,
)
from engine.memory import Memory, check_policy
from engine.options import LoadOptions
from engine.runtime.base import Backend, GpuBackend, StepInput
from engine.runtime.flip import FlipBackend
from engine.runtime.gpu.arrays import DeviceMask
from engine.threads import prefetch
from engine.weights import find, short_hash

TIMED = 4096  # the most recent steps that percentiles are taken from
MAX_OBJECTS = 255
M = TypeVar("M")  # what a mask is: `Mask`, or `DeviceMask`


@dataclass(frozen=True)
class Stats:
    """Speed so far: ``frames`` stepped, mean ``fps``, and percentiles of the time of a step."""

    frames: int
    fps: float
    p50_ms: float
    p99_ms: float


class Segmenter(Generic[M]):
    """Follows the objects of a first mask through all later frames.

    Not thread-safe; use one for each thread. Ids are the caller's own, 1…255 with gaps allowed.
    ``M`` is the type of the masks: NumPy's arrays, or with ``output="dlpack"`` `DeviceMask`.

    >>> with Segmenter.load("mobilevos-mobilenetv2") as seg:
    ...     seg.start(frame, mask)
    ...     mask = seg.step(next_frame)
    """

    def __init__(
        self,
        backend: Backend,
        model: str,
        model_hash: str,
        size: int = LoadOptions.size,
        memory: str = LoadOptions.memory,
        tta: bool = LoadOptions.tta,
        output: str = LoadOptions.output,
        blank_lost: bool = LoadOptions.blank_lost,
    ) -> None:
        self._backend, self.tta, self.blank_lost = backend, tta, blank_lost
        self.output = check_output(output, backend)
        self.memory = check_policy(memory)
        self.model, self.model_hash, self.size = model, model_hash, size
        self._closed = False
        self._geometry: Geometry | None = None
        self.reset()

    @overload
    @classmethod
    def load(cls, model: LoadOptions) -> Segmenter[Any]: ...

    @overload
    @classmethod
    def load(
        cls, model: str = ..., backend: str = ..., *, output: Literal["dlpack"], **more: Any
    ) -> Segmenter[DeviceMask]: ...

    @overload
    @classmethod
    def load(cls, model: str = ..., backend: str = ..., **more: Any) -> Segmenter[Mask]: ...

    @classmethod
    def load(
        cls,
        model: str | LoadOptions = LoadOptions.model,
        backend: str = LoadOptions.backend,
        **more: Any,
    ) -> Segmenter[Any]:
        """Load a model into a backend.

        ``more`` are the other fields of `LoadOptions`, such as ``size=480``; or give all of them as
        one `LoadOptions` in the place of ``model``. An unknown name is a TypeError.

        Raises
        ------
        ModelError, BackendError, MissingExtraError; InputError as `LoadOptions` does.
        """
        options = model if isinstance(model, LoadOptions) else LoadOptions(model, backend, **more)
        loaded = runtime.create(options)
        if options.tta:
            loaded = FlipBackend(loaded, runtime.create(options))
        return cls(
            loaded,
            options.model,
            short_hash(find(options.model, Path(options.weights))[0]),
            options.size,
            options.memory,
            options.tta,
            options.output,
            options.blank_lost,
        )

    def start(self, frame: FrameLike, mask: Mask) -> M:
        """Begin a video with its first frame [H, W, 3] and the mask [H, W] of its objects.

        Returns the mask. Whatever was followed before is forgotten.

        Raises
        ------
        InputError: wrong dtype or shape, sizes that differ, or a mask without objects.
        """
        self._check_open()
        frame, shape = take_frame(frame, self._backend)
        ids = check_mask(mask, shape[:2])
        self.reset()
        try:
            self._geometry = Geometry.fit(shape[0], shape[1], self.size)
            with self._backend_errors():
                self._backend.open(self._geometry)
            return self._advance(frame, mask, ids)
        except BaseException:
            self.reset()
            raise

    def step(self, frame: FrameLike, mask: Mask | None = None) -> M:
        """Segment the next frame and return its mask, uint8 [H, W].

        The ids in ``mask`` [H, W], if given, are added, or corrected if they are known, in this
        frame: their pixels are as given, and the network remembers them so. All other objects are
        followed as before.

        Raises
        ------
        StateError: before ``start``, or after ``close``.
        InputError: a frame of another size or dtype, or a bad mask.
        """
        geometry = self._started()
        frame, shape = take_frame(frame, self._backend)
        if shape[:2] != geometry.source:
            raise InputError(
                f"this frame is {shape_text(shape)}, but the video started with "
                f"{shape_text(geometry.source)}; resize it, or start a new video"
            )
        ids = [] if mask is None else check_mask(mask, geometry.source)
        return self._advance(frame, mask, ids)

    def _advance(self, frame: FrameLike, mask: Mask | None, ids: list[int]) -> M:
        began = time.perf_counter()
        geometry, memory, backend = self._started(), self._memory, self._backend
        new = [i for i in ids if i not in memory.ids]
        if len(memory.ids) + len(new) > MAX_OBJECTS:
            raise InputError(f"more than {MAX_OBJECTS} objects; remove some first")
        if new:
            self._add(new)
        if not memory.ids:  # all were removed: there is nothing to look for
            return self._deliver(np.zeros(geometry.source, np.uint8))
        task = StepInput(
            frame=frame,
            slots=memory.table(),
            labels=np.array([0, *memory.ids], np.uint8),
            write=memory.write,
            given=masks_to_network(mask, memory.ids, geometry) if mask is not None else None,
            use_given=np.isin(memory.ids, ids),
            on_gpu=self.output == "dlpack" and mask is None and not self.blank_lost,
        )
        try:
            with self._backend_errors():
                result, scores = backend.step(task), backend.scores()
        except BaseException:
            if new:
                self._take_back(new)
            raise
        lost = self._watch.lost(memory.ids, scores, math.prod(geometry.padded), given=ids)
        self._copy(memory.last, memory.hold(lost))
        self._lost_frames.update(memory.held.keys())
        memory.turn()
        self._copy(memory.last, memory.keep(ids))
        if self.blank_lost:
            result = np.where(np.isin(result, sorted(lost)), np.uint8(0), result)
        if mask is not None:
            result = np.where(mask > 0, mask, result)  # what was given comes back as it was
        if not task.on_gpu:
            result = self._deliver(result)
        self._times.append(time.perf_counter() - began)
        self._frames += 1
        return cast(M, result)

    def _deliver(self, mask: Mask) -> M:
        """Return a mask of the host in the kind of array that the caller asked for."""
        if self.output == "numpy":
            return cast(M, mask)
        return cast(M, cast(GpuBackend, self._backend).to_gpu(mask))

    def _add(self, new: list[int]) -> None:
        columns = self._memory.add(new)
        try:
            self._arrange(columns)
        except EngineError:  # no room, or nothing built for so many: follow those before
            for label in new:
                self._memory.remove(label)
            raise

    def _take_back(self, new: list[int]) -> None:
        """Forget objects whose first frame failed."""
        for label in new:
            self._memory.remove(label)
        self._arrange(range(len(self._memory.ids)))

    def _arrange(self, columns: Sequence[int]) -> None:
        self._slots = self._memory.slots
        with self._backend_errors():
            self._backend.arrange(columns, self._slots)

    @contextlib.contextmanager
    def _backend_errors(self) -> Iterator[None]:
        """Turn what a backend raises, which can be anything, into a BackendError."""
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            why = one_line(error) or type(error).__name__
            raise BackendError(
                f"the backend '{self.backend}' failed ({why}); try again, or another backend"
            ) from error

    def _copy(self, source: int, target: int | None) -> None:
        """Copy a slot to another, for which the pool is enlarged if need be."""
        if target is None:
            return
        if target >= self._slots:
            self._arrange(range(len(self._memory.ids)))
        with self._backend_errors():
            self._backend.copy(source, target)

    def segment(self, frames: Iterable[FrameLike], mask: Mask) -> Iterator[M]:
        """Yield the mask of every frame, the first included.

        Frames are fetched ahead in a thread, and copied if they lie on the host.
        """
        with prefetch(map(own_frame, frames)) as ahead:
            for i, frame in enumerate(ahead):
                following = ahead.peek()
                if following is not None:
                    self.expect(following)
                yield self.step(frame) if i else self.start(frame, mask)

    def expect(self, frame: FrameLike) -> None:
        """Announce the frame, uint8 [H, W, 3], of the step after the next, so that a GPU uploads it
        meanwhile.

        A hint for loops of your own; it changes no mask, and :meth:`segment` gives it by itself.
        Pass the same, unchanged array to the step later. The step reports what is wrong with the
        frame; before ``start`` this does nothing.
        """
        with contextlib.suppress(InputError):
            if self._geometry is not None:
                frame, shape = take_frame(frame, self._backend)
                if shape[:2] == self._geometry.source:
                    self._backend.expect(frame)

    def remove(self, label: int) -> None:
        """Stop following an object. Raises InputError if ``label`` is not followed."""
        self._started()
        if label not in self._memory.ids:
            raise InputError(f"no object {label} to remove; followed are: {self.ids}")
        self._arrange(self._memory.remove(label))
        self._watch.remove(label)
        self._lost_frames.pop(label, None)

    def reset(self) -> None:
        """Forget the video; the next call is ``start``."""
        self._geometry = None
        self._memory = Memory(self.memory)
        self._slots = 0  # of the backend's pool
        self._watch = LostWatch()
        self._lost_frames: Counter[int] = Counter()
        self._times: deque[float] = deque(maxlen=TIMED)
        self._frames = 0

    @property
    def backend(self) -> str:
        """Name of the backend that runs."""
        return self._backend.name

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the objects that are followed, in the order in which they came."""
        return tuple(self._memory.ids)

    @property
    def confidence(self) -> dict[int, float]:
        """How sure the network is of each of the ``ids`` in the last frame: Σp²/Σp, in 0…1.

        See :mod:`engine.confidence`; empty before ``start``.
        """
        return {
            i: self._watch.confidence[i] for i in self._memory.ids if i in self._watch.confidence
        }

    @property
    def lost(self) -> tuple[int, ...]:
        """The ``ids`` that the last frame lost; each is followed from where it was last seen.

        :mod:`engine.confidence` decides. The mask of a lost object is still what the network finds
        of it, often nothing.
        """
        return tuple(label for label in self._memory.ids if label in self._memory.held)

    @property
    def lost_frames(self) -> dict[int, int]:
        """How many frames since ``start`` lost each of the ``ids``."""
        return {label: self._lost_frames[label] for label in self._memory.ids}

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Soft masks of the last frame, fp32 [K+1, H, W]: background, then the ``ids``."""
        geometry = self._started()
        return probabilities_to_source(self._backend.probabilities(), geometry)

    @property
    def stats(self) -> Stats:
        """Speed since ``start``; percentiles over the last 4096 steps."""
        if not self._times:
            return Stats(0, 0.0, 0.0, 0.0)
        times = np.array(self._times)
        p50, p99 = np.percentile(times, (50, 99)) * 1e3
        return Stats(self._frames, float(1 / times.mean()), float(p50), float(p99))

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """Return all that the next step depends on, as arrays, for :meth:`load_state_dict`."""
        geometry, memory = self._started(), self._memory
        keys, values = self._backend.export_memory()
        used = memory.used
        return {
            "keys": keys[:used],
            "values": values[:used],
            **memory.state_dict(),
            "usual": self._watch.state(memory.ids),
            "lost_frames": np.array(list(self.lost_frames.values()), np.int64),
            "source": np.array(geometry.source),
            "size": np.array(self.size),
            "model_hash": np.array(self.model_hash),
            "tta": np.array(self.tta),
        }

    def load_state_dict(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Continue where :meth:`state_dict` was taken, with the same masks.

        Raises InputError if the state belongs to another model or to other options.
        """
        self._check_open()
        ours = {
            "model_hash": self.model_hash,
            "size": self.size,
            "policy": self.memory,
            "tta": self.tta,
        }
        if any(str(state.get(name)) != str(value) for name, value in ours.items()):
            raise InputError(
                "the saved state is of another model, size, memory or tta; load the segmenter with "
                "the same as before"
            )
        try:
            height, width = (int(x) for x in state["source"])
            geometry = Geometry.fit(height, width, self.size)
            memory, watch = Memory(self.memory), LostWatch()
            memory.load_state_dict(state)
            watch.restore(memory.ids, state["usual"].astype(np.float64))
            counts = [int(count) for count in state["lost_frames"]]
            lost_frames = Counter(dict(zip(memory.ids, counts, strict=True)))
            keys, values = (state[name].astype(np.float32) for name in ("keys", "values"))
            pool = memory.used, len(memory.ids), geometry.tokens
            if keys.shape[:2] != (pool[0], pool[2]) or values.shape[:3] != pool:
                raise ValueError("its memory is of another size")
        except Exception as error:  # made by hand, it can raise anything
            raise InputError(
                f"the saved state is damaged ({one_line(error)}); start the video anew"
            ) from None
        self.reset()
        try:
            with self._backend_errors():
                self._backend.open(geometry)
                self._backend.import_memory(keys, values)
            self._geometry, self._memory, self._watch = geometry, memory, watch
            self._lost_frames = lost_frames
            self._arrange(range(len(memory.ids)))
        except BaseException:
            self.reset()
            raise

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a Segmenter cannot be copied; load another and give it state_dict()")

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("this Segmenter is closed; load a new one")

    def _started(self) -> Geometry:
        self._check_open()
        if self._geometry is None:
            raise StateError("no video yet; call start(frame, mask) first")
        return self._geometry

    def close(self) -> None:
        """Release the backend; also at the end of a ``with`` block."""
        self._closed = True
        self._backend.close()

    def __enter__(self) -> Segmenter[M]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
