"""Objects that are lost: noticed, reported, and their memory spared; and the ensemble of views."""

from __future__ import annotations

import numpy as np
import pytest

from engine import Segmenter
from engine.confidence import LostWatch
from engine.geometry import Geometry, pad_planes
from engine.options import LoadOptions
from engine.runtime import create
from engine.runtime.flip import FlipBackend

MODEL = "mobilevos-mobilenetv2"


def iou(a, b):
    return (a & b).sum() / max(1, (a | b).sum())


@pytest.fixture(scope="module")
def seg():
    with Segmenter.load(MODEL, "cpu", threads=2) as made:
        yield made


PIXELS = 100 * 100


def score(confidence, area=1000):
    """The scores [1, 2] of an object with that Σp²/Σp and Σp pixels of 100×100."""
    return np.array([[area / PIXELS, confidence * area / PIXELS]], np.float32)


def test_scores_tell_confidence():
    p = np.zeros((2, 100, 100), np.float32)
    p[1, :10, :10] = 0.7
    want = np.stack([p.mean((1, 2)), (p**2).mean((1, 2))], 1)
    np.testing.assert_allclose(want[1], score(0.7, 70)[0], rtol=1e-6)


@pytest.mark.parametrize(("usual", "now", "area", "lost"), [
    (0.97, 0.95, 1000, False),
    (0.97, 0.88, 1000, True),  # well below the usual
    (0.88, 0.87, 1000, False),  # soft by nature
    (0.88, 0.80, 1000, True),
    (0.62, 0.59, 1000, True),  # below the floor
    (0.97, 0.97, 15, True),  # tiny
    (0.97, 0.97, 17, False),
])  # fmt: skip
def test_the_rule(usual, now, area, lost):
    watch = LostWatch()
    for _ in range(5):
        assert not watch.lost([3], score(usual), PIXELS)
    assert watch.lost([3], score(now, area), PIXELS) == ({3} if lost else set())


def test_an_object_that_fills_the_frame_is_not_lost():
    """There is no place where it could be instead, however soft its mask becomes."""
    watch = LostWatch()
    for confidence in (0.97, 0.9, 0.85, 0.8):
        assert not watch.lost([3], score(confidence, 0.8 * PIXELS), PIXELS)


def test_blanking_pixels_of_a_lost_object(clip):
    """What is painted while an object is lost becomes background; nothing else changes."""
    frames, mask = clip
    shown = [*frames[:4], *[np.zeros_like(frames[0])] * 3, *frames[4:8]]
    told = []
    for blank in (False, True):
        with Segmenter.load(MODEL, "cpu", size=120, threads=1, blank_lost=blank) as seg:
            made = [(seg.start(shown[0], mask), seg.lost)]
            made += [(seg.step(frame), seg.lost) for frame in shown[1:]]
        told.append(made)
    for (plain, lost), (blanked, lost_too) in zip(*told, strict=True):
        assert lost == lost_too
        np.testing.assert_array_equal(blanked, np.where(np.isin(plain, lost), 0, plain))
    assert any(lost for _, lost in told[0])


def test_nothing_at_all_is_lost():
    assert LostWatch().lost([3], np.zeros((1, 2), np.float32), PIXELS) == {3}


def test_an_object_that_stays_soft_is_followed_again():
    watch = LostWatch()
    watch.lost([3], score(0.97), PIXELS)
    lost = [bool(watch.lost([3], score(0.85), PIXELS)) for _ in range(100)]
    assert lost == sorted(lost, reverse=True) and 20 < sum(lost) < 60
    faint = [bool(watch.lost([3], score(0.5), PIXELS)) for _ in range(300)]
    assert all(faint), "but never one below the floor"


def test_what_is_given_is_not_lost_and_starts_anew():
    watch = LostWatch()
    watch.lost([3], score(0.97), PIXELS)
    assert not watch.lost([3], score(0.7), PIXELS, given=[3])
    assert not watch.lost([3], score(0.7), PIXELS), "0.7 is what is usual now"


def hide(frames, start, stop):
    """The clip with noise, the same in each frame, in place of frames start … stop − 1."""
    noise = np.random.default_rng(0).integers(0, 256, frames[0].shape, np.uint8)
    return [noise if start <= t < stop else f for t, f in enumerate(frames)]


def test_a_lost_object_is_reported_and_found_again(seg, clip):
    frames, mask = clip
    frames = hide(frames, 4, 9)
    lost, masks = [], []
    for t, frame in enumerate(frames[:12]):
        masks.append(seg.step(frame) if t else seg.start(frame, mask))
        lost.append(seg.lost)
        if t == 6:
            state = {k: v.copy() for k, v in seg.state_dict().items()}
    assert lost == [(1,) if 4 <= t < 9 else () for t in range(12)]
    assert seg.lost_frames == {1: 5}
    # What it reads in frame 9 is frames 0 and 3, as if the hidden frames were not there.
    direct = list(seg.segment([*frames[:4], *frames[9:12]], mask))
    for a, b in zip(masks[9:12], direct[4:], strict=True):
        assert np.array_equal(a, b)
    assert iou(masks[9] == 1, mask == 1) > 0.6
    seg.load_state_dict(state)
    for t in range(7, 12):
        assert np.array_equal(seg.step(frames[t]), masks[t])
    assert seg.lost_frames == {1: 5}


class Scripted:
    """A backend without a network: two objects of the confidences that it is told."""

    name = "scripted"

    def __init__(self, confidences):
        self.script = iter(confidences)
        self.read, self.copied = [], []

    def open(self, geometry):
        self.size = geometry.source

    def arrange(self, columns, slots):
        self.slots = slots

    def step(self, task):
        self.read.append(task.slots.tolist())
        self.now = next(self.script)
        return np.zeros(self.size, np.uint8)

    def copy(self, source, target):
        assert target < self.slots
        self.copied.append((source, target))

    def scores(self):
        return np.array([[0.5, 0.5 * c] for c in self.now], np.float32)

    def close(self):
        pass


def test_one_lost_object_leaves_the_other_alone():
    mask = np.zeros((32, 32), np.uint8)
    mask[:16], mask[16:] = 4, 9
    confidences = [(1, 1), (0.97, 0.97), (0.5, 0.97), (0.97, 0.97), (0.97, 0.3), (0.97, 0.3)]
    backend = Scripted(confidences)
    seg = Segmenter(backend, MODEL, "")
    frame = np.zeros((32, 32, 3), np.uint8)
    lost = []
    for t in range(len(confidences)):
        seg.step(frame) if t else seg.start(frame, mask)
        lost.append(seg.lost)
    assert lost == [(), (), (4,), (), (9,), (9,)]
    # Slot 1 takes frames 0, 2 and 4, slot 0 frames 1, 3 and 5; 2 is the anchor; 3 what is held.
    assert backend.read == [
        [[-1, -1]] * 2, [[2, 1]] * 2, [[2, 0]] * 2, [[2, 3], [2, 1]], [[2, 0]] * 2,
        [[2, 1], [2, 3]],
    ]  # fmt: skip
    assert backend.copied == [(1, 2), (0, 3), (0, 3)], "the frame before the one that lost it"
    assert seg.lost_frames == {4: 1, 9: 2}
    seg.remove(9)
    assert seg.lost == () and seg.lost_frames == {4: 1}


# The ensemble of views


@pytest.fixture
def ensemble():
    made = FlipBackend(*(create(LoadOptions(MODEL, "cpu", threads=2)) for _ in range(2)))
    yield made
    made.close()


@pytest.mark.parametrize("width", [320, 308])  # 308 is padded, at the right
def test_a_mirrored_video_gives_mirrored_masks(ensemble, clip, width):
    """Which one view alone does not."""
    frames, mask = [f[:, :width] for f in clip[0][:5]], clip[1][:, :width]
    mirrored = [np.ascontiguousarray(f[:, ::-1]) for f in frames]
    loop = Segmenter(ensemble, MODEL, "", tta=True)
    straight = list(loop.segment(frames, mask))
    soft = loop.probabilities
    other = list(loop.segment(mirrored, np.ascontiguousarray(mask[:, ::-1])))
    np.testing.assert_allclose(loop.probabilities[:, :, ::-1], soft, atol=1e-3)
    for a, b in zip(straight, other, strict=True):
        assert iou(a == 1, b[:, ::-1] == 1) > 0.999
    assert iou(straight[-1] == 1, mask == 1) > 0.5


def test_mirroring_keeps_the_padding_at_the_right(ensemble, rng):
    geometry = Geometry.fit(20, 30, 480)
    ensemble.open(geometry)
    planes = pad_planes(rng.random((2, 20, 30), np.float32), geometry)
    there = ensemble.mirror(planes)
    assert there.shape == planes.shape and np.array_equal(there[0, :20, 0], planes[0, :20, 29])
    assert np.array_equal(ensemble.mirror(there), planes)


def test_the_ensembles_scores_and_state(clip):
    frames, mask = clip
    with Segmenter.load(MODEL, "cpu", threads=2, tta=True) as seg:
        straight = list(seg.segment(frames[:5], mask))
        p = seg._backend.probabilities()[1:].astype(np.float64)
        want = np.stack([p.mean((1, 2)), (p**2).mean((1, 2))], 1)
        np.testing.assert_allclose(seg._backend.scores(), want, rtol=1e-4)
        seg.start(frames[0], mask)
        seg.step(frames[1])
        state = {k: v.copy() for k, v in seg.state_dict().items()}
        seg.reset()
        seg.load_state_dict(state)
        for t in range(2, 5):
            assert np.array_equal(seg.step(frames[t]), straight[t])
    with Segmenter.load(MODEL, "cpu", threads=2) as plain:
        alone = list(plain.segment(frames[:5], mask))
        assert not all(map(np.array_equal, alone, straight)), "the mirrored view has a say"


def test_the_segmenter_tells_the_confidence_of_the_last_frame(seg, clip):
    frames, mask = clip
    seg.start(frames[0], np.where(mask > 0, 9, 0).astype(np.uint8))
    assert list(seg.confidence) == [9] and seg.confidence[9] > 0.97  # as given
    seg.step(frames[1])
    p = seg.probabilities[1]
    assert seg.confidence[9] == pytest.approx((p**2).sum() / p.sum(), abs=0.01)
    seg.remove(9)
    assert seg.confidence == {}
