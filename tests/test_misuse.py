"""The API misused: every refusal is an EngineError, and a refused call changes nothing."""

from __future__ import annotations

import copy
import pickle
import shutil
import threading
import time

import numpy as np
import pytest

from engine.errors import BackendError, EngineError, InputError, ModelError, StateError
from engine.segmenter import Segmenter
from engine.weights import FOLDER, SUMS, graph_path, int8_path, weights_path, write_sums

MODEL = "mobilevos-mobilenetv2"
SIZE = (64, 96)


@pytest.fixture(scope="module")
def loaded():
    with Segmenter.load(MODEL, "cpu", size=64, threads=1) as segmenter:
        yield segmenter


@pytest.fixture
def seg(loaded):
    loaded.reset()
    return loaded


@pytest.fixture
def frames():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return [np.roll(base, 3 * k, axis=1) for k in range(8)]


@pytest.fixture
def mask():
    ids = np.zeros(SIZE, np.uint8)
    ids[10:40, 20:60] = 7
    return ids


class Failing:
    """A backend whose call ``name`` fails the n-th time."""

    def __init__(self, backend, name, error, at=1):
        self.__dict__.update(backend=backend, failing=name, error=error, left=at)

    def __getattr__(self, name):
        value = getattr(self.backend, name)
        if name != self.failing:
            return value

        def call(*args):
            self.__dict__["left"] -= 1
            if self.left == 0:
                raise self.error
            return value(*args)

        return call


@pytest.fixture
def fail(seg, monkeypatch):
    def fail(name, error=None, at=1):
        monkeypatch.setattr(
            seg, "_backend", Failing(seg._backend, name, error or RuntimeError("ORT: bad node"), at)
        )

    return fail


def test_a_buffer_that_is_used_again(seg, frames, mask):
    def ring():
        buffer = np.empty_like(frames[0])
        for frame in frames:
            buffer[:] = frame
            yield buffer

    expected = list(seg.segment(frames, mask))
    for got, want in zip(seg.segment(ring(), mask), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_leaving_a_loop_whose_source_is_stuck(seg, frames, mask):
    stuck = threading.Event()

    def camera():
        yield frames[0]
        yield frames[1]
        stuck.wait()

    began = time.monotonic()
    for _ in seg.segment(camera(), mask):
        break
    assert time.monotonic() - began < 5
    stuck.set()


@pytest.mark.parametrize("name", ["open", "arrange", "step", "copy"])
@pytest.mark.parametrize("error", [RuntimeError("bad"), MemoryError(), KeyError("x")])
def test_a_start_that_fails(seg, fail, frames, mask, name, error):
    fail(name, error)
    with pytest.raises(BackendError, match="the backend 'cpu' failed"):
        seg.start(frames[0], mask)
    with pytest.raises(StateError):
        seg.step(frames[1])
    assert seg.ids == ()


@pytest.mark.parametrize("name", ["arrange", "step"])
def test_adding_an_object_that_fails(seg, fail, frames, mask, name):
    seg.start(frames[0], mask)
    other = np.roll(mask, 20, axis=0) // 7 * 9
    other[mask > 0] = 0
    before = seg.state_dict()
    fail(name)
    with pytest.raises(BackendError):
        seg.step(frames[1], other)
    assert seg.ids == (7,)
    after = seg.state_dict()
    for key, value in before.items():
        if key not in ("keys", "values"):  # a slot that nothing reads may differ
            np.testing.assert_array_equal(after[key], value)
    assert seg.step(frames[1], other).any() and seg.ids == (7, 9)


def test_a_failed_step_can_be_repeated(seg, fail, frames, mask):
    expected = list(seg.segment(frames[:3], mask))
    seg.start(frames[0], mask)
    fail("step")
    with pytest.raises(BackendError, match="bad node"):
        seg.step(frames[1])
    for frame, want in zip(frames[1:3], expected[1:], strict=True):
        np.testing.assert_array_equal(seg.step(frame), want)


def test_a_closed_segmenter(frames, mask):
    seg = Segmenter.load(MODEL, "cpu", size=64, threads=1)
    seg.start(frames[0], mask)
    state = seg.state_dict()
    seg.close()
    seg.close()
    for call in (
        lambda: seg.step(frames[0]),
        lambda: seg.start(frames[0], mask),
        lambda: seg.load_state_dict(state),
        seg.state_dict,
    ):
        with pytest.raises(StateError, match="closed"):
            call()


def test_a_segmenter_is_not_copied(seg):
    for call in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied"):
            call(seg)


SPOILED = {
    "ids": [[7, 7], [0], [256], ["a"], []],
    "kept": [[[99]], [[-5]], [[0]], [["x"]], []],
    "held": [[99], [1], [], ["x"]],
    "doubled": [[], [True, True]],
    "last": [9, -1, "x", []],
    "frames": ["x", 0, -1],
    "usual": [[], [1, 2], ["x"]],
    "lost_frames": [[], ["x"], [1, 2]],
    "source": [[0, 0], [1], [-1, 5], [10**6, 10**6], "x"],
    "keys": [np.zeros((1, 2)), "x", np.zeros((3, 4, 64)), np.zeros(())],
    "values": [np.zeros((1, 2)), np.zeros((3, 1, 4, 64)), "x"],
    "size": [9],
    "policy": ["infinite", "x"],
    "model_hash": ["0"],
    "tta": [True],
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_state_made_by_hand(seg, frames, mask, name):
    seg.start(frames[0], mask)
    seg.step(frames[1])
    good = seg.state_dict()
    bad = [{**good, name: np.array(value)} for value in SPOILED[name]]
    bad.append({key: value for key, value in good.items() if key != name})
    for state in bad:
        with pytest.raises(InputError):
            seg.load_state_dict(state)
        assert seg.ids == (7,)  # the running video goes on
    expected = seg.step(frames[2])
    seg.load_state_dict(good)
    np.testing.assert_array_equal(seg.step(frames[2]), expected)


def test_a_state_of_nothing(seg):
    for state in ({}, {"size": np.array(64)}):
        with pytest.raises(InputError):
            seg.load_state_dict(state)


@pytest.mark.parametrize(
    "options",
    [
        {"size": "480"}, {"size": None}, {"size": float("nan")}, {"size": 48.5}, {"size": True},
        {"threads": 1.5}, {"threads": "2"}, {"threads": 10**25}, {"threads": 10**4}, {"threads": 0},
        {"weights": None}, {"weights": 5}, {"bundles": None}, {"backend": None}, {"backend": 3},
        {"model": 5}, {"memory": None}, {"output": 1},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_other_types(options):
    with pytest.raises(EngineError):
        Segmenter.load(**{"backend": "cpu", **options})


# Weights


@pytest.fixture
def copied(tmp_path):
    """The shipped files of a model, without the list of hashes."""
    for path in (weights_path(MODEL), graph_path(MODEL), int8_path(MODEL)):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_copies_of_the_shipped_weights_are_used(copied):
    Segmenter.load(MODEL, "cpu", threads=1, weights=copied).close()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("how", ["bits", "zeros", "garbage", "header", "graph"])
@pytest.mark.parametrize("listed", [False, True])
def test_damaged_weights_are_refused(copied, backend, how, listed):
    if listed:
        shutil.copy(FOLDER / SUMS, copied)
    path = (graph_path if how == "graph" else weights_path)(MODEL, copied)
    content = bytearray(path.read_bytes())
    if how == "zeros":
        content = bytearray(len(content))
    elif how == "garbage":
        content = bytearray(np.random.default_rng(0).bytes(len(content)))
    elif how == "header":
        content[:8] = b"\xff" * 8
    else:
        content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ModelError, match=SUMS):
        Segmenter.load(MODEL, backend, threads=1, weights=copied)


def test_a_damaged_int8_graph_is_refused(copied, monkeypatch):
    monkeypatch.setattr("engine.runtime.why_no_int8", lambda: "")
    path = int8_path(MODEL, copied)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ModelError, match=SUMS):
        Segmenter.load(MODEL, "cpu-int8", threads=1, weights=copied)


def test_other_weights_are_used_once_they_are_listed(copied):
    path = weights_path(MODEL, copied)
    content = bytearray(path.read_bytes())
    content[-2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ModelError, match="sha256sum"):
        Segmenter.load(MODEL, "cpu", threads=1, weights=copied)
    write_sums(copied)
    Segmenter.load(MODEL, "cpu", threads=1, weights=copied).close()


@pytest.mark.parametrize("text", ["", "x", "\xff", "a b c\n"])
def test_a_spoiled_list_of_hashes(copied, text):
    (copied / SUMS).write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=SUMS):
        Segmenter.load(MODEL, "cpu", threads=1, weights=copied)


def test_a_graph_of_another_kind(copied):
    onnx = pytest.importorskip("onnx")
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), graph_path(MODEL, copied)
    )
    write_sums(copied)
    with pytest.raises(ModelError, match="no step graph"):
        Segmenter.load(MODEL, "cpu", threads=1, weights=copied)
