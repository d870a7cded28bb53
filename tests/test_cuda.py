"""The GPU backend's real source on stand-ins of the driver and TensorRT (`tests/doubles`)."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from doubles import cuda_driver, rtx
from doubles.machine import Machine, Misuse, newest, shuffled
from doubles.rig import MODEL, Made, Rig, rigged, toy_bundle

import engine.runtime.cuda as cuda_source
import engine.runtime.gpu.plan as plan_source
from engine import runtime
from engine.confidence import LostWatch
from engine.errors import BackendError, InputError, ModelError
from engine.frames import plan
from engine.runtime.base import StepInput
from engine.runtime.gpu import arrays, driver, pool
from engine.segmenter import Segmenter

SIZE = (64, 96)
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


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    """Bundles for 1, 2 and 4 objects whose engines are no networks."""
    out = tmp_path_factory.mktemp("bundles")
    return [toy_bundle(out, k, SIZE) for k in (1, 2, 4)]


def video(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]


def squares(*ids: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A mask with a square for each id, side by side."""
    mask = np.zeros(size, np.uint8)
    for i in ids:
        mask[10:30, 12 * (i % 8) : 12 * (i % 8) + 9] = i
    return mask


def load(rig: Rig, source: ModuleType = cuda_source, **options: Any) -> Segmenter:
    return Segmenter(source.CudaBackend(rig.library()), "m", "h", **options)


class OnGpu:
    """A frame on the stand-in GPU that another library owns, by the CUDA array interface.

    Its content is written by work on that library's own stream.
    """

    def __init__(self, rig: Rig, frame: np.ndarray) -> None:
        self.machine = rig.machine
        self.address = rig.machine.allocate(frame.nbytes, "device")
        self.stream = rig.machine.handle()
        rig.machine.streams[self.stream] = []
        self.shape = frame.shape

        def produce() -> None:
            if self.address in self.machine.blocks:
                self.machine.array(self.address, frame.shape, np.uint8)[:] = frame

        rig.machine.put(self.stream, "produce", produce)
        self.__cuda_array_interface__ = {
            "shape": frame.shape,
            "typestr": "|u1",
            "data": (self.address, False),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }

    def free(self) -> None:
        self.machine.finish_stream(self.stream)
        del self.machine.streams[self.stream]
        self.machine.free(self.address, "device")


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
        backend.open(plan(*SIZE, 480))
        backend.arrange([-1], 4)
        backend.arrange([0], 8)  # a memory that is enlarged before it was ever used
        backend.open(plan(*SIZE, 480))
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


def test_the_next_frame_is_uploaded_while_this_one_is_computed(toys):
    with rigged(toys, Machine(policy=newest, ahead=True)) as rig, load(rig) as seg:
        frames = iter(video(6))
        seg.start(next(frames), squares(1))
        seg.step(next(frames))
        a, b = next(frames), next(frames)
        seg._expect(b)
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


@pytest.mark.parametrize(("precision", "read", "size"), [
    ("fp16", "triton", (48, 80)), ("fp32", "graph", SIZE), ("fp16", "graph", (48, 80)),
])  # fmt: skip
def test_where_engines_cannot_write_into_slots_they_are_copied(tmp_path, precision, read, size):
    """15 positions in fp16 begin off TensorRT's alignment; one engine must not write its input."""
    with rigged([toy_bundle(tmp_path, 1, size, precision, read)]) as rig, load(rig) as seg:
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


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.99])
def test_out_of_memory_says_for_what_and_leaks_nothing(toys, share):
    with rigged(toys) as rig, load(rig) as seg:
        seg.start(video(1)[0], squares(1, 2, 3))
        need = sum(b.size for b in rig.machine.blocks.values() if b.kind == "device")
    with rigged(toys, Machine(int(need * share))) as rig:
        with load(rig) as seg, pytest.raises(BackendError) as caught:
            seg.start(video(1)[0], squares(1, 2, 3))
        text = str(caught.value)
        assert "NVIDIA Stand-in is out of memory" in text and "smaller --size" in text
        assert not any(rig.machine.live().values()), rig.machine.live()


@pytest.mark.parametrize(("change", "error", "text"), [
    (lambda rig: rig.driver.answers.update(cuInit=100), BackendError, "no usable GPU"),
    (lambda rig: setattr(rig.driver, "version", 11080), BackendError, "it knows CUDA 11.8"),
    (lambda rig: rig.tensorrt.graphs.clear(), ModelError, "cannot load .*engine.*another version"),
    (
        lambda rig: setattr(rig.driver, "capability", (7, 5)),
        ModelError,
        r"built for sm_86, but NVIDIA Stand-in is sm_75; .* python -m engine.build --fp32 --model",
    ),
    (lambda rig: rig.driver.answers.update(cuLibraryLoadData=209), ModelError, "NO_BINARY_FOR_GPU"),
    (lambda rig: rig.driver.answers.update(cuStreamCreate=999), BackendError, "UNKNOWN"),
])  # fmt: skip
def test_a_gpu_that_cannot_run_it_is_told_in_one_line(toys, change, error, text):
    from cuda.bindings import driver as real

    with rigged(toys) as rig:
        change(rig)
        rig.driver.answers = {n: real.CUresult(c) for n, c in rig.driver.answers.items()}
        with pytest.raises(error, match=text) as caught, load(rig) as seg:
            seg.start(video(1)[0], squares(1))
        assert "\n" not in str(caught.value)


def test_sizes_and_objects_that_nothing_is_built_for(toys):
    with rigged(toys) as rig, load(rig) as seg:
        frame = video(1, size=(64, 64))[0]
        with pytest.raises(ModelError, match=r"no bundle .* at 64x64 .*build .*--size 64x64"):
            seg.start(frame, squares(1, size=(64, 64)))
        with pytest.raises(ModelError, match=r"with 5 object.*--size 64x96 --objects 8"):
            seg.start(video(1)[0], squares(1, 2, 3, 4, 5))
        want = seg.start(video(1)[0], squares(1))  # and goes on
        with pytest.raises(ModelError, match="with 5 object"):
            seg.step(video(1)[0], squares(2, 3, 4, 5))
        assert seg.ids == (1,)
        again = seg.step(video(1, seed=3)[0])
        seg.start(video(1)[0], squares(1))
        np.testing.assert_array_equal(seg.step(video(1, seed=3)[0]), again)
        assert want.any()


def test_no_driver_here():
    """Not on stand-ins: cuda-python itself, on a machine without a driver."""
    try:
        driver.need_driver()
    except BackendError as error:
        assert "no NVIDIA driver" in str(error) and "--backend cpu" in str(error)
        with pytest.raises(BackendError, match="no NVIDIA driver"):
            driver.Device()
    else:
        pytest.skip("there is a driver here")


def test_neither_torch_nor_triton_is_needed():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['triton'] = None\n"
        "import engine.runtime.cuda, engine.segmenter, kernels.launch, kernels.tiles\n"
        "assert not {'onnx', 'tensorrt_rtx', 'cuda.bindings'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_calls_in_use_are_the_real_ones():
    """Every call of the stand-ins exists, and takes parameters of these names in this order."""
    from cuda.bindings import driver as real

    calls = [name for name in vars(cuda_driver.Driver) if name.startswith("cu")]
    assert len(calls) > 30
    for name in calls:
        got = list(inspect.signature(getattr(cuda_driver.Driver, name)).parameters)[1:]
        assert got == list(inspect.signature(getattr(real, name)).parameters), name


def test_tensorrts_methods_in_use_are_the_real_ones():
    """The real ones tell their signatures in their docstrings: ``name(self: …, parameter: …``."""
    import tensorrt_rtx as real

    doubles = (rtx.Runtime, rtx.ICudaEngine, rtx.IExecutionContext, rtx.IRuntimeConfig)
    checked = 0
    for double in (*doubles, rtx.IRuntimeCache):
        for name, method in vars(double).items():
            if name.startswith("_") or not callable(method):
                continue
            text = getattr(getattr(real, double.__name__), name).__doc__
            heads = re.findall(rf"{name}\(self: (.*?)\) ->", text)
            assert heads, (double.__name__, name)
            got = list(inspect.signature(method).parameters)[1:]
            told = [re.findall(r", (\w+): ", head) for head in heads]
            assert got in told, (name, got, told)
            checked += 1
    assert checked >= 12
    strategy = real.ExecutionContextAllocationStrategy
    assert strategy.USER_MANAGED and real.DynamicShapesKernelSpecializationStrategy.EAGER
    for name in ("num_io_tensors", "device_memory_size_v2"):
        assert isinstance(getattr(real.ICudaEngine, name), property)
    assert isinstance(real.IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy, property)


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


@pytest.mark.parametrize(("change", "text"), [
    ({"typestr": "<f4"}, "uint8, but this one is <f4"),
    ({"strides": (1, 64, 6144)}, "must be contiguous"),
    ({"shape": (64, 96, 4)}, r"must be RGB, .*\(64, 96, 4\)"),
])  # fmt: skip
def test_a_bad_frame_on_the_gpu(toys, change, text):
    with rigged(toys) as rig, load(rig) as seg:
        seg.start(video(1)[0], squares(1))
        frame = OnGpu(rig, video(1)[0])
        frame.__cuda_array_interface__ |= change
        with pytest.raises(InputError, match=text):
            seg.step(frame)
        seg.step(video(1)[0])


def test_a_frame_on_the_gpu_is_refused_by_a_backend_of_the_host():
    class Frame:
        shape = (64, 96, 3)

        def __dlpack_device__(self):
            return 2, 0

    wrong = pytest.raises(InputError, match="lies on a GPU, but the backend 'cpu'")
    with Segmenter.load(backend="cpu") as seg, wrong:
        seg.start(Frame(), squares(1))
    with pytest.raises(InputError, match="leave output='dlpack' out"):
        Segmenter.load(backend="cpu", output="dlpack")


def test_host_arrays_of_other_libraries(toys):
    torch = pytest.importorskip("torch")
    frames = video(3)
    with rigged(toys) as rig, load(rig) as a, load(rig) as b:
        want = list(a.segment(frames, squares(1)))
        got = list(b.segment([torch.from_numpy(f) for f in frames], squares(1)))
    np.testing.assert_array_equal(got, want)


class Exporter:
    """A tensor of PyTorch on the stand-in GPU: its capsule is PyTorch's own."""

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.shape, self.streams = tensor, tuple(tensor.shape), []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self.tensor.__dlpack__()


def test_a_frame_by_dlpack(toys):
    torch = pytest.importorskip("torch")
    frames = video(3)
    with rigged(toys) as rig, load(rig) as seg:
        want = list(seg.segment(frames, squares(1)))
        address = rig.machine.allocate(frames[1].nbytes, "device")
        there = rig.machine.array(address, frames[1].shape, np.uint8)
        there[:] = frames[1]
        seg.start(frames[0], squares(1))
        frame = Exporter(torch.from_numpy(there))
        np.testing.assert_array_equal(seg.step(frame), want[1])
        # The producer orders its stream before ours, if we name ours.
        assert frame.streams == [int(seg._backend.upload)]
        with pytest.raises(InputError, match="must be contiguous"):
            seg.step(Exporter(torch.zeros(3, 64, 96, dtype=torch.uint8).permute(1, 2, 0)))
        with pytest.raises(InputError, match="uint8, but"):
            seg.step(Exporter(torch.zeros(64, 96, 3)))


def test_a_mask_by_dlpack_is_a_tensor_without_a_copy(toys, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(arrays, "CUDA", 1)  # PyTorch here knows no other memory than the host's
    with rigged(toys) as rig:
        with load(rig, output="dlpack") as seg:
            seg.start(video(1)[0], squares(1))
            mask = seg.step(video(1)[0])
            address, expected = mask.address, mask.numpy()
            unused = mask.__dlpack__()
            tensor = torch.from_dlpack(mask)
            del mask, unused
        assert tensor.data_ptr() == address and tensor.shape == SIZE
        np.testing.assert_array_equal(tensor.numpy(), expected)
        assert rig.machine.live()["device"] == 1, "the tensor keeps the mask"
        del tensor
        assert not any(rig.machine.live().values()), rig.machine.live()
        assert not arrays._held


def test_the_runtime_cache_lies_beside_the_bundle(tmp_path):
    made = toy_bundle(tmp_path, 1, SIZE)
    before = sorted(made.folder.iterdir())
    with rigged([made]) as rig:
        for _ in range(2):
            with load(rig) as seg:
                seg.start(video(1)[0], squares(1))
    assert sorted(made.folder.iterdir()) == before, "what is hashed stays as it was"
    (cache,) = [p for p in tmp_path.iterdir() if p.is_file()]
    assert cache.name.startswith(f"{made.folder.name}.sm_86.") and cache.suffix == ".cache"
    assert cache.read_bytes() == b"compiled kernels"


def test_the_users_way(toys):
    """By ``Segmenter.load`` and ``auto``: hashes are checked, bundles pinned, devices released."""
    import hashlib

    manifest = (toys[0].folder / "manifest.json").read_bytes()
    pin = hashlib.sha256(manifest).hexdigest()
    with rigged(toys) as rig:
        assert runtime.choose("auto", MODEL, rig.bundles)[0] == "tensorrt-rtx"
        with Segmenter.load(bundles=rig.bundles, expect_sha256=pin) as seg:
            assert seg.backend == "tensorrt-rtx"
            seg.start(video(1)[0], squares(1))
            with pytest.raises(ModelError, match="not the expected"):
                seg.step(video(1)[0], squares(2))
        assert not any(rig.machine.live().values()), rig.machine.live()
        why = runtime.choose("auto", "mobilevos-resnet18", rig.bundles)[1]
        assert "run: python -m engine.build --fp16 --model mobilevos-resnet18" in why


@pytest.mark.parametrize(("changes", "text"), [
    ({"model_sha256": "0" * 64}, "built of other weights of mobilevos-mobilenetv2"),
])  # fmt: skip
def test_bundles_that_are_refused(toys, tmp_path, changes, text):
    made = toy_bundle(tmp_path, 1, SIZE, **changes)
    with rigged([made]) as rig:
        backend = Segmenter.load(backend="tensorrt-rtx", bundles=rig.bundles)
        with backend as seg, pytest.raises(ModelError, match=text):
            seg.start(video(1)[0], squares(1))
        assert not any(rig.machine.live().values()), rig.machine.live()


@pytest.mark.parametrize("read", ["triton", "graph"])
def test_bundles_of_open_sizes(tmp_path, read):
    """Their shapes are set from the video's size, and then they give what a fixed one gives."""
    frames = video(5)
    masks = []
    for name, dynamic in (("fixed", None), ("open", ((32, 32), (128, 128)))):
        made = toy_bundle(tmp_path / name, 1, SIZE, read=read, dynamic=dynamic)
        with rigged([made]) as rig, load(rig) as seg:
            masks.append(list(seg.segment(frames, squares(1))))
    np.testing.assert_array_equal(*masks)


def test_a_damaged_engine_is_refused_before_it_is_loaded(tmp_path):
    made = toy_bundle(tmp_path, 1, SIZE)
    with rigged([made]) as rig, load(rig) as seg:
        engine = next(made.folder.glob("*.engine"))
        engine.write_bytes(engine.read_bytes()[:-1])
        with pytest.raises(ModelError, match="bytes instead of"):
            seg.start(video(1)[0], squares(1))


def test_step_input_of_a_plan_fills_empty_columns():
    from engine.runtime.gpu.plan import Controls

    controls = Controls(objects=4, reads=2)
    offsets, size = controls.offsets()
    block = np.full(size, 0xEE, np.uint8)
    task = StepInput(
        frame=None,
        slots=np.array([[2, 0], [3, 1]], np.int32),
        labels=np.array([0, 7, 9], np.uint8),
        write=1,
        given=np.zeros(1, np.float32),
        use_given=np.array([False, True]),
    )
    controls.fill(controls.views(block), task)
    at = offsets["slots"]
    slots = block[at : at + 32].view(np.int32).reshape(4, 2)
    assert slots.tolist() == [[2, 0], [3, 1], [-1, -1], [-1, -1]]
    assert block[offsets["labels"] :][:5].tolist() == [0, 7, 9, 0, 0]
    assert block[offsets["use_given"] :][:4].tolist() == [0, 1, 0, 0]
    assert block[offsets["active"] :][:4].tolist() == [1, 1, 0, 0]
    assert all(at % 256 == 0 for at in offsets.values())


def test_the_command_line_pins_a_bundle(toys, tmp_path, capsys):
    """``segment`` on the GPU backend, with the manifest's hash and with another one."""
    import hashlib

    from PIL import Image

    from engine.cli import main
    from engine.masks import write_mask

    frames = tmp_path / "frames"
    frames.mkdir()
    for i, frame in enumerate(video(3)):
        Image.fromarray(frame).save(frames / f"{i}.png")
    write_mask(tmp_path / "first.png", squares(1))
    pin = hashlib.sha256((toys[0].folder / "manifest.json").read_bytes()).hexdigest()
    with rigged(toys) as rig:
        command = ["segment", str(frames), "--mask", str(tmp_path / "first.png")]
        command += ["--backend", "tensorrt-rtx", "--bundles", str(rig.bundles), "--expect-sha256"]
        assert main([*command, pin, "--out", str(tmp_path / "out")]) == 0
        assert len(list((tmp_path / "out" / "masks").iterdir())) == 3
        assert "on tensorrt-rtx" in capsys.readouterr().out
        assert main([*command, "f" * 64, "--out", str(tmp_path / "other")]) == 2
        assert "not the expected" in capsys.readouterr().err
        assert not any(rig.machine.live().values()), rig.machine.live()
