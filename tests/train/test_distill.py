"""The distillation losses against float64 loops, at their limits, and in a step of training."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers.networks import randomised

from engine.model import aggregate
from engine.train import follow
from engine.train.config import Distillation, Teacher
from engine.train.data import Batch
from engine.train.distill import (
    blend,
    class_logits,
    contrastive,
    correlation,
    logit_divergence,
    near_boundary,
    pick,
    representation,
)
from engine.train.follow import Following, asks_teacher, normalise, relations
from engine.train.recipes import CONFIGS
from engine.train.unroll import Prediction, unroll

NOASPP = "mobilevos-mobilenetv2-noaspp"


def doubles(rng, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


# Logits


@pytest.mark.parametrize("objects", [1, 2, 4])
def test_class_logits_are_those_of_the_soft_aggregation(rng, objects):
    z = 2 * doubles(rng, 2, objects, 5, 6)
    p = torch.sigmoid(z)
    p = torch.cat([(1 - p).prod(1, keepdim=True), p], 1)
    odds = p / (1 - p)
    got = class_logits(z).softmax(1)
    torch.testing.assert_close(got, odds / odds.sum(1, keepdim=True))
    want = aggregate(torch.sigmoid(z), dim=1)  # in fp32
    torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=1e-4)


def test_class_logits_far_out_are_finite():
    z = torch.tensor([-200.0, -30.0, 30.0, 200.0])[None, None].requires_grad_()
    both = class_logits(z)
    both.square().sum().backward()
    assert torch.isfinite(both).all() and torch.isfinite(z.grad).all()
    assert (both.diff(dim=1)[0, 0] < 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_divergence_against_its_formula(rng, temperature):
    s, t = doubles(rng, 2, 2, 3, 4), doubles(rng, 2, 2, 3, 4)
    total = 0.0
    for b, y, x in np.ndindex(2, 3, 4):
        merged = []
        for z in (s, t):
            p = 1 / (1 + np.exp(-z[b, :, y, x].numpy()))
            nothing = np.prod(1 - p)
            merged.append(np.log([nothing / (1 - nothing), *(p / (1 - p))]) / temperature)
        student, teacher = map(softmax, merged)
        total += (teacher * (np.log(teacher) - np.log(student))).sum()
    want = temperature**2 * total / 24
    assert logit_divergence(s, t, temperature).item() == pytest.approx(want, rel=1e-9)


def test_divergence_at_its_limits(rng):
    s, t = doubles(rng, 1, 1, 4, 4), doubles(rng, 1, 1, 4, 4)
    assert logit_divergence(s, s, 0.5).item() == pytest.approx(0, abs=1e-15)
    assert logit_divergence(s, t, 0.5) > 0
    # For a high temperature: half the variance over the classes of the difference of the logits.
    gap = (class_logits(t) - class_logits(s)).var(1, unbiased=False).mean() / 2
    assert logit_divergence(s, t, 1e4).item() == pytest.approx(gap.item(), rel=1e-3)


def test_gradient_of_the_divergence(rng):
    s, t = doubles(rng, 1, 2, 2, 3).requires_grad_(), doubles(rng, 1, 2, 2, 3)
    assert torch.autograd.gradcheck(lambda x: logit_divergence(x, t, 0.7), s)


# Relations


@pytest.fixture
def pixels(rng) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student's and teacher's features, float64 [9, 5] and [9, 7], and labels [9] of 3 classes."""
    labels = torch.from_numpy(rng.permutation(np.arange(9) % 3))
    return doubles(rng, 9, 5), doubles(rng, 9, 7), labels


def test_correlation_against_loops(pixels):
    x = pixels[0].numpy()
    want = [[a @ b / np.sqrt(a @ a * (b @ b)) for b in x] for a in x]
    np.testing.assert_allclose(correlation(pixels[0]), want, rtol=1e-12, atol=1e-15)
    assert (correlation(torch.zeros(3, 2)) == 0).all(), "nothing correlates with nothing"


def test_the_target_blends_teacher_and_labels(pixels):
    _, features, y = pixels
    teacher = correlation(features)
    same = (y.numpy()[:, None] == y.numpy()[None]).astype(float)
    onehot = torch.nn.functional.one_hot(y).double()
    np.testing.assert_array_equal(onehot @ onehot.T, same)
    for omega in (0.0, 0.3, 0.95, 1.0):
        want = omega * teacher.numpy() + (1 - omega) * same
        np.testing.assert_allclose(blend(teacher, y, omega), want, rtol=1e-12)
    np.testing.assert_array_equal(blend(None, y, 0.0), same)


def test_representation_against_loops(pixels):
    s, t, y = pixels
    student, target = correlation(s).numpy(), blend(correlation(t), y, 0.7).numpy()
    whole = common = 0.0
    for i, j in np.ndindex(9, 9):
        whole += student[i, j] ** 2
        common += (student[i, j] * target[i, j]) ** 2
    want = (np.log2(whole) - np.log2(common)) / 9
    got = representation(torch.from_numpy(student), torch.from_numpy(target))
    assert got.item() == pytest.approx(want, rel=1e-12)


def test_representation_at_its_limits():
    y = torch.tensor([0, 0, 1, 1])
    same = blend(None, y, 0.0)
    assert representation(same, same).item() == 0, "classes apart, each of one direction"
    assert representation(torch.eye(4), same).item() == 0, "all pixels apart: the diagonal is left"
    worst = representation(torch.ones(4, 4), torch.eye(4))
    assert worst.item() == pytest.approx(np.log2(4) / 4), "all alike, and none should be"
    assert representation(torch.ones(4, 4), same).item() == pytest.approx(np.log2(2) / 4)
    nothing = torch.zeros(4, 4, requires_grad=True)
    loss = representation(nothing, same)
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(nothing.grad).all()


def test_representation_is_no_distance():
    """Equal matrices are not where it is least, as the docstring says."""
    teacher = correlation(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    assert representation(torch.eye(3), teacher) == 0
    assert representation(teacher, teacher) > 0.05


def test_gradients_of_the_relations(pixels):
    s, t, y = pixels
    target = blend(correlation(t), y, 0.6)
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: representation(correlation(x), target), s)
    for diagonal in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, d=diagonal: contrastive(correlation(x).square(), y, d), s
        )


@pytest.mark.parametrize("diagonal", [False, True])
def test_contrastive_against_loops(pixels, diagonal):
    s, _, y = pixels
    y[0] = 7  # alone with its label: without the diagonal it cannot be compared
    for similarity in (correlation(s).square(), (correlation(s) / 0.1).exp()):
        terms = []
        for i in range(9):
            others = [j for j in range(9) if diagonal or j != i]
            alike = [j for j in others if y[i] == y[j]]
            if alike:
                row = similarity[i].numpy()
                terms.append(-np.log2(row[alike].sum() / row[others].sum()))
        assert len(terms) == (9 if diagonal else 8)
        got = contrastive(similarity, y, diagonal)
        assert got.item() == pytest.approx(np.mean(terms), rel=1e-10)


@pytest.mark.parametrize(("turns", "labels"), [
    ([0.0, 0.2, 0.5, 0.7], [0, 0, 1, 1]),  # two classes, one a turned copy of the other
    ([0.0, 0.25, 0.5, 0.75], [0, 1, 0, 1]),
])  # fmt: skip
def test_omega_0_is_the_contrastive_loss_where_all_pixels_do_equally_well(turns, labels):
    angles, y = np.pi * torch.tensor(turns, dtype=torch.float64), torch.tensor(labels)
    c = correlation(torch.stack([angles.cos(), angles.sin()], 1))
    eq3 = contrastive(c.square(), y, diagonal=True)
    assert eq3 > 0.1
    assert representation(c, blend(None, y, 0.0)).item() == pytest.approx(eq3.item() / 4)
    assert contrastive(c.square(), y).item() != pytest.approx(eq3.item()), "the diagonal matters"
    assert contrastive(c.abs(), y, diagonal=True).item() != pytest.approx(eq3.item())


def test_omega_0_is_below_the_contrastive_loss_where_rows_have_equal_sums(rng):
    """Jensen's inequality; a circulant matrix has rows of equal sums, whatever the labels."""
    angles = torch.arange(8, dtype=torch.float64) * np.pi / 8
    square = correlation(torch.stack([angles.cos(), angles.sin()], 1)).square()
    torch.testing.assert_close(square.sum(1), torch.full((8,), 4.0, dtype=torch.float64))
    y = torch.tensor([0, 1, 0, 0, 1, 0, 0, 0])
    eq1 = representation(square.sqrt(), blend(None, y, 0.0)) * 8
    assert contrastive(square, y, diagonal=True) > eq1 + 0.01


def test_without_equal_rows_neither_bounds_the_other():
    rng, gaps = np.random.default_rng(0), []
    for _ in range(200):
        c = correlation(doubles(rng, 6, 3))
        y = torch.from_numpy(rng.integers(0, 2, 6))
        eq3 = contrastive(c.square(), y, diagonal=True)
        gaps.append(float(eq3 - 6 * representation(c, blend(None, y, 0.0))))
    assert max(gaps) > 1e-3 and min(gaps) < -1e-3


# Boundary sampling


@pytest.mark.parametrize("band", [0, 1, 3])
def test_near_boundary_against_a_search(rng, band):
    masks = torch.zeros(2, 9, 12)
    masks[0, 3:6, 4:8] = 1
    masks[1] = torch.from_numpy(rng.integers(0, 2, (9, 12)))
    masks[1, :, 5:] = 0
    got = near_boundary(masks, band)
    for b, y, x in np.ndindex(*masks.shape):
        window = masks[b, max(0, y - band) : y + band + 1, max(0, x - band) : x + band + 1]
        assert bool(got[b, y, x]) == (band == 0 or bool((window != masks[b, y, x]).any()))
    assert not near_boundary(torch.ones(1, 5, 5), 2).any(), "the image's border is none"


def test_pick_takes_at_most_so_many_of_those_inside(rng):
    inside = torch.from_numpy(rng.random(200) < 0.5)
    count = int(inside.sum())
    for points in (1, 20, count, 1000):
        at = pick(inside, points, np.random.default_rng(3))
        assert len(at) == min(points, count) == len(at.unique())
        assert inside[at].all()
    again = [pick(inside, 20, np.random.default_rng(s)).tolist() for s in (3, 3, 4)]
    assert again[0] == again[1] != again[2]
    assert len(pick(torch.zeros(9, dtype=torch.bool), 5, np.random.default_rng(0))) == 0


# In a step


def prediction(rng, channels: int, objects: int = 2) -> Prediction:
    feature = torch.from_numpy(rng.standard_normal((2, objects, channels, 8, 12), np.float32))
    return Prediction(torch.empty(0), torch.empty(0), feature.relu())


def generators(seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, b]) for b in range(2)]


@pytest.mark.parametrize("omega", [0.0, 0.95, 1.0])
def test_relations_of_a_frame_against_their_parts(rng, omega):
    """Few enough pixels that all are taken; the second clip's second object is hidden."""
    distil = Distillation(representation=1.0, omega=omega, band=1, points=1000)
    ours, theirs = prediction(rng, 6), prediction(rng, 10)
    labels = torch.zeros(2, 32, 48, dtype=torch.int64)
    labels[:, 8:20, 12:24], labels[0, 4:16, 28:40] = 1, 2
    total = 0.0
    for b, k in np.ndindex(2, 2):
        own = (labels[b, ::4, ::4] == k + 1).float()
        at = near_boundary(own[None], 1)[0]
        if at.any():
            c_s, c_t = (correlation(f.feature[b, k][:, at].T.double()) for f in (ours, theirs))
            target = blend(c_t, own[at], omega)
            total += float(representation(c_s, target)) * len(target)
    got = relations(ours, theirs, labels, distil, generators())
    assert total > 0
    assert got.item() == pytest.approx(total / 4, rel=1e-4)


def test_few_points_are_taken_near_the_boundary_alone(rng, monkeypatch):
    sizes = []
    monkeypatch.setattr(follow, "representation", lambda s, t: sizes.append(len(s)) or s.sum() * 0)
    labels = torch.zeros(2, 32, 48, dtype=torch.int64)
    labels[:, 8:20, 12:24] = 1
    for band, points in ((0, 1000), (1, 1000), (1, 10)):
        distil = Distillation(representation=1.0, band=band, points=points)
        relations(prediction(rng, 6, 1), prediction(rng, 6, 1), labels, distil, generators())
    assert sizes == [96, 96, 24, 24, 10, 10]


@pytest.mark.parametrize(("distil", "asks"), [
    (Distillation(), False),
    (Distillation(logits=0.1), True),
    (Distillation(representation=0.1), True),
    (Distillation(representation=0.1, omega=0.0), False),
])  # fmt: skip
def test_a_teacher_that_no_loss_asks_is_not_even_loaded(monkeypatch, distil, asks):
    from engine.train import loop

    loaded = []
    monkeypatch.setattr(loop, "load_teacher", lambda t: loaded.append(t) or randomised(NOASPP))
    config = dataclasses.replace(CONFIGS["smoke"], teacher=Teacher(NOASPP), distil=distil)
    task, _ = loop.make_task(config)
    assert asks_teacher(distil) is asks
    assert bool(loaded) is asks is bool(task.frozen)


def small_batch(objects: int = 1, length: int = 3) -> Batch:
    rng = np.random.default_rng(8)
    frames = rng.integers(0, 256, (2, length, 48, 64, 3), np.uint8)
    labels = np.zeros((2, length, 48, 64), np.uint8)
    labels[:, :, 8:28, 8:36] = 1
    if objects == 2:
        labels[:, :, 30:44, 20:60] = 2
    return Batch(frames, labels, np.ones_like(labels), objects, np.array([3, 4]))


@pytest.mark.parametrize("objects", [1, 2])
def test_a_step_adds_up_its_losses_and_leaves_the_teacher_alone(objects):
    distil = Distillation(logits=0.5, representation=0.1, points=50)
    config = dataclasses.replace(CONFIGS["smoke"], teacher=Teacher(NOASPP), distil=distil)
    teacher = randomised(NOASPP, 1).requires_grad_(False)
    task = Following(randomised(NOASPP), teacher, config)
    loss, parts = task(small_batch(objects), 2)
    want = parts["cross_entropy"] + parts["dice"] + 0.5 * parts["logits"]
    assert loss.item() == pytest.approx((want + 0.1 * parts["representation"]).item())
    assert parts["logits"] > 0 and parts["representation"] > 0
    loss.backward()
    assert all(p.grad is not None for p in task.model.parameters())
    assert len(task.state_dict()) == len(teacher.state_dict()), "the teacher is not saved"
    again, _ = task(small_batch(objects), 2)
    assert again.item() == loss.item(), "the sample depends on the clip's seed alone"


def test_a_teacher_that_is_the_student_teaches_nothing():
    model = randomised(NOASPP)
    distil = Distillation(logits=1.0)
    config = dataclasses.replace(CONFIGS["smoke"], teacher=Teacher(NOASPP), distil=distil)
    _, parts = Following(model, model, config)(small_batch(), 2)
    assert abs(parts["logits"].item()) < 1e-6


def test_each_of_the_two_has_its_own_memory(monkeypatch):
    seen = []

    def spy(model, *rest, every=0, edit=None):
        seen.append((model, every, torch.is_grad_enabled()))
        return unroll(model, *rest, every=every, edit=edit)

    monkeypatch.setattr(follow, "unroll", spy)
    config = dataclasses.replace(
        CONFIGS["smoke"], every=2, teacher=Teacher(NOASPP, every=1), distil=Distillation(logits=1.0)
    )
    student, teacher = randomised(NOASPP), randomised(NOASPP)
    Following(student, teacher, config)(small_batch(), 1)
    assert seen == [(student, 2, True), (teacher, 1, False)]


@pytest.mark.parametrize(("every", "want"), [
    (0, [[0], [0, 1], [0, 2], [0, 3], [0, 4]]),
    (1, [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
    (2, [[0], [0, 1], [0, 2], [0, 2, 3], [0, 2, 4]]),
])  # fmt: skip
def test_what_the_memory_keeps(every, want):
    """Frames 1 to 5 read the first, every n-th and the most recent one, none of them twice."""
    model = randomised(NOASPP)
    batch = small_batch(length=6)
    frames, labels = normalise(batch.frames, torch.device("cpu")), torch.tensor(batch.labels)
    with torch.no_grad():
        keys = [model.encode_query(frames[:, t])[0] for t in range(6)]
    reads = []

    def number(key):
        """The frame of a key; several frames encoded together differ by rounding."""
        return min(range(6), key=lambda t: (key - keys[t][len(reads) % 2]).abs().max().item())

    def read(query, memory, values, slots):
        assert slots.tolist() == [list(range(len(memory)))]
        reads.append((number(query), [number(k) for k in memory]))
        return torch.zeros(1, *values.shape[2:])

    model.read_memory = read
    with torch.no_grad():
        unroll(model, frames, labels, 1, 1, every)
    assert reads == [(t, want[t - 1]) for t in range(1, 6) for _ in range(2)]
