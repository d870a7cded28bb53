"""Errors put into remembered masks: what they change, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cv2")

from engine.train.corrupt import corrupt_masks, part_of, regions_in  # noqa: E402


def masks_and_frames(rng, objects=2, height=96, width=128):
    masks = torch.zeros(2, objects, height, width)
    masks[:, 0, 30:70, 20:60] = 1
    masks[:, -1, 40:80, 70:110] = 0.9
    frames = torch.from_numpy(rng.uniform(-1, 1, (2, 3, height, width)).astype(np.float32))
    return masks, frames


def test_share_of_zero_changes_nothing():
    rng = np.random.default_rng(0)
    masks, frames = masks_and_frames(rng)
    assert torch.equal(corrupt_masks(rng, masks, frames, 0.0), masks)


def test_every_corrupted_mask_loses_or_gains():
    rng = np.random.default_rng(1)
    lost = gained = 0
    for _ in range(20):
        masks, frames = masks_and_frames(rng, objects=1)
        area = masks.sum((2, 3))
        after = corrupt_masks(rng, masks, frames, 1.0).sum((2, 3))
        lost, gained = lost + int((after < area).sum()), gained + int((after > area).sum())
        assert (after > 0.1 * area).all()
        assert (after < 3 * area).all()
    assert min(lost, gained) >= 10  # of 40


def test_objects_never_sum_to_more_than_one():
    rng = np.random.default_rng(2)
    for _ in range(20):
        masks, frames = masks_and_frames(rng)
        after = corrupt_masks(rng, masks, frames, 1.0)
        assert after.min() >= 0
        assert after.sum(1).max() <= 1 + 1e-6


def test_an_absent_object_stays_absent():
    rng = np.random.default_rng(3)
    masks, frames = masks_and_frames(rng)
    masks[:, 1] = 0
    assert not corrupt_masks(rng, masks, frames, 1.0)[:, 1].any()


def test_part_of_cuts_between_15_and_85_percent():
    rng = np.random.default_rng(4)
    ys, xs = np.nonzero(np.ones((40, 60)))
    shares = [part_of(rng, ys, xs, (40, 60)).mean() for _ in range(50)]
    assert min(shares) >= 0.12
    assert max(shares) <= 0.88
    assert max(shares) - min(shares) > 0.4


def test_regions_stop_at_edges_of_the_image_and_at_the_object():
    rng = np.random.default_rng(5)
    frame = torch.full((3, 60, 90), -1.0)
    frame[:, :, 50:] = 1.0  # an edge at column 50
    own = np.zeros((60, 90), bool)
    own[20:40, 20:40] = True
    blob = np.zeros((60, 90), np.float32)
    blob[25:30, 42:46] = 1
    found = regions_in(rng, blob, frame, own)
    assert found.any()
    assert not found[:, 53:].any()  # 3 pixels of blur
    assert not (found[own]).any()


def test_the_gradient_goes_through_what_is_left():
    rng = np.random.default_rng(6)
    masks, frames = masks_and_frames(rng, objects=1)
    masks.requires_grad_()
    after = corrupt_masks(rng, masks, frames, 1.0)
    after.sum().backward()
    assert masks.grad is not None
    assert 0 < float((masks.grad == 0).float().mean()) < 1
