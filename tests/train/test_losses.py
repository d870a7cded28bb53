"""The losses against plain float64 implementations, at their limits, and by gradcheck."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.train.losses import bootstrapped_cross_entropy, dice, mean_iou


@pytest.fixture
def maps(rng) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float64 [2, 3, 5, 7] that sum to one, and labels [2, 5, 7]."""
    p = rng.dirichlet(np.ones(3), (2, 5, 7)).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(p), rng.integers(0, 3, (2, 5, 7))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.25, 1.0])
def test_cross_entropy_keeps_exactly_the_hardest_share(maps, share):
    p, y = maps
    cost = -np.log(np.take_along_axis(p, y[:, None], 1)).reshape(2, -1)
    keep = max(1, int(share * 35))
    want = np.sort(cost, 1)[:, -keep:].mean()
    got = bootstrapped_cross_entropy(torch.from_numpy(p), torch.from_numpy(y), share)
    assert got.item() == pytest.approx(want, rel=1e-12)


def test_cross_entropy_at_its_limits():
    y = torch.zeros(1, 4, 4, dtype=torch.int64)
    sure = torch.stack([torch.ones(1, 4, 4), torch.zeros(1, 4, 4)], 1).requires_grad_()
    assert bootstrapped_cross_entropy(sure, y, 0.25).item() == 0
    wrong = bootstrapped_cross_entropy(sure, 1 - y, 0.25)
    assert wrong.item() == pytest.approx(-np.log(1e-6)), "bounded where the probability is 0"
    wrong.backward()
    assert torch.isfinite(sure.grad).all()


def test_only_the_hardest_pixels_get_a_gradient(maps):
    p, y = torch.from_numpy(maps[0]).requires_grad_(), torch.from_numpy(maps[1])
    bootstrapped_cross_entropy(p, y, 0.2).backward()
    assert ((p.grad != 0).flatten(1).sum(1) == 7).all()


def test_dice_against_its_formula(maps):
    p, y = maps
    want = []
    for b in range(2):
        for k in (1, 2):
            both = (p[b, k] * (y[b] == k)).sum()
            want.append(1 - (2 * both + 1) / (p[b, k].sum() + (y[b] == k).sum() + 1))
    assert dice(torch.from_numpy(p), torch.from_numpy(y)).item() == pytest.approx(np.mean(want))


def test_dice_at_its_limits():
    absent = torch.zeros(2, 6, 6, dtype=torch.int64)
    nothing = torch.cat([torch.ones(2, 1, 6, 6), torch.zeros(2, 2, 6, 6)], 1)
    assert dice(nothing, absent).item() == 0, "an absent object found absent costs nothing"
    full = torch.ones_like(absent)
    found = torch.stack([torch.zeros(2, 6, 6), torch.ones(2, 6, 6)], 1)
    assert dice(found, full).item() == 0
    assert dice(1 - found, full).item() == pytest.approx(1 - 1 / 37)


def test_gradients_of_the_losses(maps):
    p, y = torch.from_numpy(maps[0]).requires_grad_(), torch.from_numpy(maps[1])
    assert torch.autograd.gradcheck(lambda x: bootstrapped_cross_entropy(x, y, 0.25), p)
    assert torch.autograd.gradcheck(lambda x: dice(x, y), p)


def test_mean_iou_against_numpy(maps):
    p, y = maps
    y[0][y[0] == 2] = 0  # absent in the first clip
    found = p.argmax(1)
    scores = []
    for b in range(2):
        for k in (1, 2):
            a, c = found[b] == k, y[b] == k
            scores.append((a & c).sum() / (a | c).sum())
    got = mean_iou(torch.from_numpy(p), torch.from_numpy(y))
    assert got.item() == pytest.approx(np.mean(scores))
    background = torch.eye(3)[:, :1, None].expand(1, 3, 2, 2)
    assert mean_iou(background, torch.zeros(1, 2, 2, dtype=torch.int64)).item() == 1
