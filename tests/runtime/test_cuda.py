"""The GPU backend's real source on stand-ins of the driver and TensorRT (`tests/doubles`)."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda.bindings.driver import CUresult
from doubles.machine import Machine, Misuse, newest, shuffled
from doubles.rig import Made, Rig, rigged, toy_bundle
from doubles.rtx import IExecutionContext
from doubles.videos import SIZE, OnGpu, load, squares, video

import engine.runtime.cuda as cuda_source
import engine.runtime.gpu.plan as plan_source
from engine.confidence import LostWatch
from engine.errors import BackendError
from engine.geometry import Geometry
from engine.runtime.gpu import arrays, driver, pool
from engine.segmenter import Segmenter

#: As late as can be, as early as can be, and at random.
ORDERS: dict[str, Callable[[], Machine]] = {
    "late": lambda: Machine(),
    "late, newest first": lambda: Machine(policy=newest),
    "ahead": lambda: Machine(ahead=True),
    "ahead, newest first": lambda: Machine(policy=newest, ahead=True),
    **{
        f"random {i}": functools.partial(lambda i: Machine(policy=shuffled(i), ahead=True), i)
        for i in range(4)
    },
}


def scenario(rig: Rig, source: ModuleType = cuda_source) -> list[np.ndarray]:
    """All that a backend can be asked for; returns all that it answers."""
    frames = video(24)
    answers: list[np.ndarray] = []
    with load(rig, source) as seg:
        backend: Any = seg._backend
        answers += list(seg.segment(frames[:4], squares(1)))
        answers.append(seg.probabilities)
        answers.append(seg.step(frames[4], squares(2, 3)))  # 1 → 3 objects: another bucket
        answers += [seg.step(f) for f in frames[5:7]]
        seg.remove(2)  # columns move within the bucket of 4 … or into that of 2
        answers.append(seg.step(frames[7]))
        answers.append(seg.step(frames[8], squares(4, 5)))
        seg.remove(1)
        answers += [seg.step(f) for f in frames[9:11]]
        backend.expect(frames[13])
        answers += [seg.step(f) for f in frames[11:13]]  # another one than was expected
        theirs = OnGpu(rig, frames[14])
        answers.append(seg.step(theirs))
        theirs.free()
        answers.append(backend._plan.host_scores.copy())
        state = {name: np.array(x) for name, x in seg.state_dict().items()}
        answers += [state["keys"], state["values"]]
        answers.append(seg.step(frames[15]))
        seg.load_state_dict(state)
        answers.append(seg.step(frames[15]))
        backend.expect(frames[16])
        answers.append(seg.step(frames[17]))
        # The memory is full when a mask is to stay on the GPU: the frame is already under way.
        seg.output, total = "dlpack", rig.machine.total
        rig.machine.total = 0
        with pytest.raises(BackendError, match="out of memory"):
            seg.step(frames[18])
        seg.output, rig.machine.total = "numpy", total
        answers.append(seg.start(frames[0], squares(1)))
        backend.expect(frames[19])
        answers.append(seg.step(frames[1]))
        answers.append(seg.start(frames[2], squares(1)))  # the expected one was on its way
        answers.append(seg.step(frames[3]))
        answers.append(seg.step(frames[4]))
        rig.driver.answers["cuGraphLaunch"] = rig.driver.CUresult.CUDA_ERROR_UNKNOWN
        with pytest.raises(BackendError, match="UNKNOWN to cuGraphLaunch"):
            seg.step(frames[4], squares(1))  # the given mask was on its way
        rig.driver.answers.clear()
        backend.open(Geometry.fit(*SIZE, 480))
        backend.arrange([-1], 4)
        backend.arrange([0], 8)  # a memory that is enlarged before it was ever used
        backend.open(Geometry.fit(*SIZE, 480))
        backend.arrange([-1], 4)  # and one that is given up
        answers.append(seg.start(frames[1], squares(1)))
    return answers


@pytest.fixture(scope="module")
def want(toys: list[Made]) -> list[np.ndarray]:
    """What the scenario answers if all work is done in the order in which it was given."""
    with rigged(toys, Machine(ahead=True)) as rig:
        return scenario(rig)


def agrees(got: list[np.ndarray], want: list[np.ndarray]) -> bool:
    return len(got) == len(want) and all(
        a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in zip(got, want, strict=True)
    )


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_that_the_events_allow_gives_the_same(toys, want, order):
    masks = [a for a in want if a.shape == SIZE]
    assert len({m.tobytes() for m in masks}) > 15, "the masks depend on the frames"
    with rigged(toys, ORDERS[order]()) as rig:
        assert agrees(scenario(rig), want)
        assert not any(rig.machine.live().values()), rig.machine.live()
        assert rig.tensorrt.live_contexts == 0


def waits(source: ModuleType) -> list[int]:
    """The lines of a module that wait for an event or a stream."""
    text = Path(str(source.__file__)).read_text()
    calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)]
    names = {"wait", "synchronize"}
    return sorted(
        c.lineno for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr in names
    )


def without(source: ModuleType, line: int | None) -> ModuleType:
    """A copy of a module in which one line, if any, does nothing."""
    lines = Path(str(source.__file__)).read_text().splitlines()
    if line is not None:
        code = lines[line - 1]
        lines[line - 1] = code[: len(code) - len(code.lstrip())] + "pass"
    module = ModuleType(source.__name__)
    module.__file__, module.__package__ = source.__file__, source.__package__
    # A dataclass looks its module up.
    sys.modules[module.__name__] = module
    try:
        exec(compile("\n".join(lines), str(source.__file__), "exec"), module.__dict__)
    finally:
        sys.modules[module.__name__] = source
    return module


MUTANTS = [(s, line) for s in (cuda_source, arrays, pool) for line in waits(s)]
CONTROLS = [(s, None) for s in (cuda_source, arrays, pool)]


@pytest.mark.parametrize(
    ("source", "line"),
    MUTANTS + CONTROLS,
    ids=[f"{s.__name__.split('.')[-1]}:{n or 'control'}" for s, n in MUTANTS + CONTROLS],
)
def test_a_removed_wait_is_caught(toys, want, monkeypatch, source, line):
    """Every wait in the source is needed: without it some order goes wrong. A control has all."""
    mutant = without(source, line)
    backend = mutant if source is cuda_source else cuda_source
    for name in ("import_frame", "DeviceMask", "fetch", "Pool"):
        for user in (cuda_source, pool, arrays):
            if getattr(user, name, None) is getattr(source, name, mutant):
                monkeypatch.setattr(user, name, getattr(mutant, name))

    def wrong(order: Callable[[], Machine]) -> bool:
        with rigged(toys, order()) as rig:
            try:
                if not agrees(scenario(rig, backend), want):
                    return True
                gpu_masks(rig, backend)
            except (Misuse, AssertionError):
                return True
        return False

    if line is None:
        assert not any(wrong(ORDERS[name]) for name in ("late", "ahead, newest first"))
    else:
        assert any(wrong(order) for order in ORDERS.values())


def gpu_masks(rig: Rig, source: ModuleType = cuda_source) -> None:
    """Masks that stay on the GPU are those of the host."""
    frames, mask = video(5), squares(1)
    with load(rig, source) as seg:
        want = list(seg.segment(frames, mask))
    with load(rig, source, output="dlpack") as seg:
        got = [seg.start(frames[0], mask)]
        got += [seg.step(f) for f in frames[1:]]
        for m, w in zip(got, want, strict=True):
            assert m.shape == SIZE and m.__dlpack_device__() == (2, 0)
            # Complete at once: read without any stream.
            there = rig.machine.array(m.__cuda_array_interface__["data"][0], SIZE, np.uint8)
            np.testing.assert_array_equal(there, w)
            np.testing.assert_array_equal(m.numpy(), w)
        seg.remove(1)
        assert not seg.step(frames[0]).numpy().any()
    kept = got[2]
    del got, m
    np.testing.assert_array_equal(kept.numpy(), want[2])  # outlives the segmenter


def test_masks_on_the_gpu(toys):
    with rigged(toys) as rig:
        gpu_masks(rig)
        assert not any(rig.machine.live().values()), rig.machine.live()


def test_graphs_are_replayed_and_equal_single_launches(toys):
    frames = video(8)
    with rigged(toys) as rig:
        launched: list[Any] = []
        launch = rig.machine.launch
        rig.machine.launch = lambda *a: (launched.append(a[0]), launch(*a))  # type: ignore
        with load(rig) as seg:
            want = list(seg.segment(frames, squares(1)))
            assert len(launched) == 6 and len({id(g) for g in launched}) == 2
        single = Segmenter(rig.backend(graphs=False), "m", "h")
        np.testing.assert_array_equal(list(single.segment(frames, squares(1))), want)
        assert len(launched) == 6
        single.close()


@pytest.mark.parametrize("refuse", [
    lambda rig, patch: patch.setitem(rig.driver.answers, "cuGraphInstantiate", CUresult(801)),
    lambda rig, patch: patch.setitem(rig.driver.answers, "cuStreamBeginCapture", CUresult(900)),
    lambda rig, patch: patch.setattr(IExecutionContext, "is_stream_capturable", lambda *_: False),
])  # fmt: skip
def test_what_cannot_be_captured_is_launched_stage_by_stage(toys, monkeypatch, refuse):
    frames = video(6)
    with rigged(toys) as rig, load(rig) as seg:
        want = list(seg.segment(frames, squares(1)))
    with rigged(toys) as rig:
        refuse(rig, monkeypatch)
        with load(rig) as seg, pytest.warns(RuntimeWarning, match="stage by stage") as told:
            np.testing.assert_array_equal(list(seg.segment(frames, squares(1))), want)
        assert len(told) == 1
        assert not rig.machine.capturing and not any(rig.machine.live().values())


def test_the_next_frame_is_uploaded_while_this_one_is_computed(toys):
    with rigged(toys, Machine(policy=newest, ahead=True)) as rig, load(rig) as seg:
        frames = iter(video(6))
        seg.start(next(frames), squares(1))
        seg.step(next(frames))
        a, b = next(frames), next(frames)
        seg.expect(b)
        rig.machine.log.clear()
        seg.step(a)
        assert rig.machine.log.count("upload") == 3  # two frames, one block of controls
        rig.machine.log.clear()
        seg.step(b)
        assert rig.machine.log.count("upload") == 1


def test_five_hundred_frames_leak_nothing(toys):
    frames = video(10)
    with rigged(toys) as rig:
        with load(rig) as seg:
            seg.start(frames[0], squares(1))
            seg.step(frames[1])
            seg.step(frames[2])
            before = rig.machine.live()
            for i in range(500):
                seg.step(frames[i % 10])
                rig.machine.log.clear()
            assert rig.machine.live() == before
            assert before["pending"] == 0
        assert not any(rig.machine.live().values())


def test_two_videos_at_once_do_not_mix(toys):
    """Two segmenters in one process, frame by frame, and each alone: the same masks."""
    films = video(6, 1), video(6, 2, (64, 96))
    with rigged(toys, Machine(policy=shuffled(5), ahead=True)) as rig:
        alone = []
        for film in films:
            with load(rig) as seg:
                alone.append(list(seg.segment(film, squares(1, 2))))
        with load(rig) as a, load(rig) as b:
            together: list[list[np.ndarray]] = [[], []]
            for i in range(6):
                for seg, film, masks in zip((a, b), films, together, strict=True):
                    masks.append(seg.step(film[i]) if i else seg.start(film[i], squares(1, 2)))
        np.testing.assert_array_equal(together, alone)


def test_where_engines_cannot_write_into_slots_they_are_copied(tmp_path):
    """15 positions in fp16 begin off TensorRT's alignment."""
    size = (48, 80)
    with rigged([toy_bundle(tmp_path, 1, size, "fp16")]) as rig, load(rig) as seg:
        frames = video(5, size=size)
        masks = list(seg.segment(frames, squares(1, size=size)))
        assert len({m.tobytes() for m in masks}) > 3
        assert "copy" in rig.machine.log[-12:]
        assert [name for name, _ in seg._backend._plan.sides[0].stages][-2] == "write_memory"


def test_stages_are_named_for_profilers(toys, monkeypatch):
    """Ranges around every stage of a single launch, by the package nvtx where it is installed."""
    import contextlib

    names: list[str] = []

    class Nvtx(ModuleType):
        @staticmethod
        def annotate(name: str, domain: str) -> Any:
            names.append(name)
            return contextlib.nullcontext()

    monkeypatch.setitem(sys.modules, "nvtx", Nvtx("nvtx"))
    plan_source._nvtx.cache_clear()
    with rigged(toys) as rig, Segmenter(rig.backend(graphs=False), "m", "h") as seg:
        seg.start(video(1)[0], squares(1))
    plan_source._nvtx.cache_clear()
    stages = ["preprocess", "encode_query", "read_memory", "decode", "mask_head"]
    assert names == ["frame", "upload", *stages]


def test_the_infinite_memory_grows(toys, monkeypatch):
    """More slots and more reads for an object: another plan each time, and nothing leaks."""
    monkeypatch.setattr(LostWatch, "lost", lambda *_, **__: set())  # no frame is left out
    with rigged(toys) as rig:
        with load(rig, memory="infinite") as seg:
            masks = list(seg.segment(video(26), squares(1)))
            assert seg._backend._plan.reads == 6 and seg._backend._pool.shape.slots == 8
        assert len({m.tobytes() for m in masks}) > 20
        assert not any(rig.machine.live().values()), rig.machine.live()


def test_soft_masks_outlive_a_larger_memory(toys):
    with rigged(toys) as rig, load(rig) as seg:
        seg.start(video(1)[0], squares(1))
        before = seg.probabilities
        assert before.any()
        seg._backend.arrange([0], 16)
        np.testing.assert_array_equal(seg.probabilities, before)


def test_a_capture_refuses_allocation(toys):
    with rigged(toys) as rig, load(rig) as seg:
        seg.start(video(1)[0], squares(1))
        backend: Any = seg._backend
        side = backend._plan.sides[1 - seg._memory.write]
        for forbidden in (
            lambda stream: driver.Scope(backend.device).memory(16, "a leak"),
            lambda stream: stream.synchronize(),
            lambda stream: backend.done.synchronize(),
        ):
            side.stages.append(("forbidden", forbidden))
            with pytest.raises(BackendError, match="CAPTURE_UNSUPPORTED"):
                backend._plan.capture(side, backend.compute)
            side.stages.pop()
        assert not rig.machine.capturing and not rig.machine.graphs


def test_no_garbage_is_collected_inside_a_capture(toys):
    """A mask that the collector finds there would be freed, which the capture does not survive."""
    import gc

    with rigged(toys) as rig, load(rig) as seg:
        seg.start(video(1)[0], squares(1))
        backend: Any = seg._backend
        side = backend._plan.sides[1 - seg._memory.write]
        seen = []
        side.stages.append(("look", lambda stream: seen.append(gc.isenabled())))
        backend._plan.run(side, backend.compute)
        backend._plan.capture(side, backend.compute)
        assert seen == [True, False] and gc.isenabled()


def test_any_thread_may_step(toys):
    from concurrent.futures import ThreadPoolExecutor

    frames = video(4)
    with rigged(toys) as rig, load(rig) as seg, ThreadPoolExecutor(1) as thread:
        seg.start(frames[0], squares(1))
        calls: list[str] = []
        use = seg._backend.device.use
        seg._backend.device.use = lambda: (calls.append("use"), use())
        for frame in frames[1:]:
            thread.submit(seg.step, frame).result()
        assert len(calls) >= 3, "the context is made current in the thread that calls"
