"""The API on the CPU backend: objects come and go, and misuse is answered clearly."""

from __future__ import annotations

import numpy as np
import pytest

from engine import Segmenter
from engine.errors import BackendError, InputError, ModelError, StateError

MODEL = "mobilevos-mobilenetv2"


@pytest.fixture(scope="module")
def seg():
    with Segmenter.load(MODEL, "cpu", threads=2) as made:
        yield made


@pytest.fixture
def frames(clip):
    return clip[0]


@pytest.fixture
def mask(clip):
    return clip[1]


def iou(a, b):
    return (a & b).sum() / max(1, (a | b).sum())


def test_follows_the_object(seg, frames, mask):
    """The rabbit hardly moves for the first frames: its mask must neither die nor spread."""
    masks = list(seg.segment(frames[:10], mask))
    assert len(masks) == 10
    for m in masks:
        assert m.dtype == np.uint8 and m.shape == mask.shape
        assert set(np.unique(m)) == {0, 1}
        assert iou(m == 1, mask == 1) > 0.6
    assert np.array_equal(masks[0], mask), "the first mask comes back as it was given"


def test_ids_are_the_callers(seg, frames, mask):
    one = list(seg.segment(frames[:4], mask))
    other = list(seg.segment(frames[:4], mask * 201))
    assert seg.ids == (201,)
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a * 201, b)


def test_adding_keeps_the_others(seg, frames, mask):
    """A rock added in frame 3 is followed, and the rabbit's mask stays but for their border."""
    alone = list(seg.segment(frames[:8], mask))
    more = np.zeros_like(mask)
    more[102:136, 22:62] = 77  # the box around the nearer of the grey rocks
    more[mask > 0] = 0
    seg.start(frames[0], mask)
    for t in range(1, 8):
        got = seg.step(frames[t], more if t == 3 else None)
        if t == 3:
            assert np.array_equal(got[more > 0], more[more > 0]), "given pixels are as given"
        if t >= 3:
            assert seg.ids == (1, 77)
            assert iou(got == 77, more == 77) > 0.3
            assert iou(got == 1, alone[t] == 1) > 0.93
    assert seg.probabilities.shape == (3, *mask.shape)


def test_correcting_moves_the_anchor(seg, frames, mask):
    seg.start(frames[0], np.roll(mask, 90, axis=1))  # a bad first mask
    wrong = seg.step(frames[1])
    seg.step(frames[2], mask)
    right = seg.step(frames[3])
    assert iou(right == 1, mask == 1) > iou(wrong == 1, mask == 1) + 0.2
    assert seg.ids == (1,)


def test_removing(seg, frames, mask):
    both = mask.copy()
    both[5:45, 5:45] = 2
    seg.start(frames[0], both)
    seg.step(frames[1])
    seg.remove(1)
    got = seg.step(frames[2])
    assert seg.ids == (2,) and set(np.unique(got)) == {0, 2}
    seg.remove(2)
    assert not seg.step(frames[3]).any(), "nothing is followed: nothing is found"
    got = seg.step(frames[4], mask)
    assert seg.ids == (1,) and (got > 0).any(), "and something can be added again"


def test_slots_of_dropped_anchors_are_used_again(seg, frames, mask):
    seg.start(frames[0], mask)
    for frame in frames[1:7]:
        seg.step(frame, mask)
    assert seg.state_dict()["keys"].shape[0] <= 4


def test_probabilities(seg, frames, mask):
    seg.start(frames[0], mask)
    got = seg.step(frames[1])
    soft = seg.probabilities
    assert soft.shape == (2, *mask.shape) and soft.dtype == np.float32
    np.testing.assert_allclose(soft.sum(0), 1, atol=1e-4)
    assert np.array_equal(soft.argmax(0), got)


def test_state_goes_on_with_the_same_masks(seg, frames, mask):
    straight = list(seg.segment(frames[:8], mask))
    seg.start(frames[0], mask)
    for frame in frames[1:4]:
        seg.step(frame)
    state = {k: v.copy() for k, v in seg.state_dict().items()}
    seg.reset()
    seg.load_state_dict(state)
    assert seg.ids == (1,)
    for t in range(4, 8):
        assert np.array_equal(seg.step(frames[t]), straight[t])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_infinite_memory_reads_every_fifth_frame(frames, mask, backend):
    with Segmenter.load(MODEL, backend, threads=2, memory="infinite") as seg:
        straight, reads = [], []
        for t, frame in enumerate(frames[:13]):
            straight.append(seg.step(frame) if t else seg.start(frame, mask))
            reads.append((seg._memory.table() >= 0).sum())
            if t == 7:
                state = {k: v.copy() for k, v in seg.state_dict().items()}
                soft = seg.probabilities
        # After frames 0, 5 and 10 the most recent frame is one of those that stay.
        assert reads == [1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4]
        assert state["keys"].shape[0] == 4 and len(seg.state_dict()["keys"]) == 5
        assert soft.max() > 0.9, "the pool's growth leaves the soft masks alone"
        seg.load_state_dict(state)
        for t in range(8, 13):
            assert np.array_equal(seg.step(frames[t]), straight[t])
    with Segmenter.load(MODEL, backend, threads=2) as finite:
        same = list(map(np.array_equal, finite.segment(frames[:13], mask), straight))
        assert all(same[:7]) and not all(same[7:]), "frame 7 is the first with more to read"
        with pytest.raises(InputError, match="another model, size, memory or tta"):
            finite.load_state_dict(state)


def test_state_of_another_model_is_refused(seg, frames, mask):
    seg.start(frames[0], mask)
    state = seg.state_dict()
    state["model_hash"] = np.array("another")
    with pytest.raises(InputError, match="another model, size, memory or tta"):
        seg.load_state_dict(state)


def test_stats(seg, frames, mask):
    list(seg.segment(frames[:5], mask))
    stats = seg.stats
    assert stats.frames == 5
    assert 0 < stats.p50_ms <= stats.p99_ms
    assert stats.fps > 0
    seg.reset()
    assert seg.stats.frames == 0


def test_many_objects_at_once(seg, rng):
    frame = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    mask = np.arange(32 * 48).reshape(32, 48) // 6 % 256
    seg.start(frame, mask.astype(np.uint8))
    assert len(seg.ids) == 255
    assert seg.step(frame).shape == (32, 48)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5000), (5000, 3), (17, 31)])
def test_odd_sizes(seg, rng, height, width):
    frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.ones((height, width), np.uint8)
    seg.start(frame, mask)
    assert seg.step(frame).shape == (height, width)
    assert seg.probabilities.shape == (2, height, width)


def test_frames_need_not_be_contiguous_nor_writable(seg, frames, mask):
    want = list(seg.segment(frames[:3], mask))
    mirrored = [np.ascontiguousarray(f[:, ::-1])[:, ::-1] for f in frames[:3]]
    for f in mirrored:
        f.flags.writeable = False
    got = list(seg.segment(mirrored, np.ascontiguousarray(mask[:, ::-1])[:, ::-1]))
    assert np.array_equal(want, got)


def test_calls_in_the_wrong_order(seg, frames, mask):
    seg.reset()
    with pytest.raises(StateError, match=r"call start\(frame, mask\) first"):
        seg.step(frames[0])
    with pytest.raises(StateError):
        seg.remove(1)
    with pytest.raises(StateError):
        _ = seg.probabilities
    seg.start(frames[0], mask)
    with pytest.raises(InputError, match="no object 9"):
        seg.remove(9)


def test_closed(frames, mask):
    seg = Segmenter.load(MODEL, "cpu")
    seg.start(frames[0], mask)
    seg.close()
    seg.close()
    with pytest.raises(StateError, match="closed"):
        seg.step(frames[1])
    with pytest.raises(StateError, match="closed"):
        seg.start(frames[0], mask)


@pytest.mark.parametrize(("frame", "message"), [
    (np.zeros((4, 5, 3), np.float32), "uint8"),
    (np.zeros((4, 5), np.uint8), "RGB"),
    (np.zeros((4, 5, 4), np.uint8), "RGB"),
    (np.zeros((0, 5, 3), np.uint8), "RGB"),
    ([[1]], "NumPy"),
])  # fmt: skip
def test_bad_frames(seg, frame, message):
    with pytest.raises(InputError, match=message):
        seg.start(frame, np.ones((4, 5), np.uint8))


def test_bad_masks(seg, frames, mask):
    with pytest.raises(InputError, match="no object"):
        seg.start(frames[0], np.zeros_like(mask))
    with pytest.raises(InputError, match="10x20.*320x180"):
        seg.start(frames[0], np.ones((20, 10), np.uint8))
    with pytest.raises(InputError, match="uint8"):
        seg.start(frames[0], mask.astype(np.int64))
    with pytest.raises(InputError, match="uint8"):
        seg.start(frames[0], np.stack([mask] * 3, 2))


def test_a_refused_call_changes_nothing(seg, frames, mask):
    want = list(seg.segment(frames[:3], mask))
    seg.start(frames[0], mask)
    seg.step(frames[1])
    with pytest.raises(InputError, match="resize it, or start a new video"):
        seg.step(frames[2][:90])
    with pytest.raises(InputError):
        seg.step(frames[2], np.zeros_like(mask))
    assert np.array_equal(seg.step(frames[2]), want[2])


def test_bad_options():
    with pytest.raises(ModelError, match="unknown model 'resnet'"):
        Segmenter.load("resnet")
    with pytest.raises(BackendError, match="unknown backend 'gpu'"):
        Segmenter.load(MODEL, "gpu")
    with pytest.raises(InputError, match="size is 8"):
        Segmenter.load(MODEL, size=8)
    with pytest.raises(InputError, match="threads is 0"):
        Segmenter.load(MODEL, threads=0)
    with pytest.raises(InputError, match="unknown memory 'huge'"):
        Segmenter.load(MODEL, memory="huge")


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_weights(tmp_path, damage):
    from engine.weights import graph_path, weights_path

    (tmp_path / graph_path(MODEL).name).write_bytes(graph_path(MODEL).read_bytes())
    raw = weights_path(MODEL).read_bytes()
    if damage == "truncated":
        (tmp_path / weights_path(MODEL).name).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ModelError):
        Segmenter.load(MODEL, "cpu", weights=tmp_path)
    with pytest.raises(ModelError):
        Segmenter.load(MODEL, "reference", weights=tmp_path)
