"""The reference network: parameter counts, stages, aggregation, folding, precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.networks import randomised, run

from engine.errors import ModelError
from engine.model import CONFIGS, aggregate, create, fuse, load
from engine.model.backbones import MobileNetV2
from engine.model.read_memory import image_grid, tokens
from engine.weights import MODELS, weights_path

MILLIONS = {
    "mobilevos-resnet18": 8.1,
    "mobilevos-mobilenetv2": 2.5,
    "mobilevos-mobilenetv2-noaspp": 1.9,
}


def test_the_names_are_the_same_everywhere():
    assert tuple(CONFIGS) == MODELS


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_count_is_the_papers(name):
    count = sum(p.numel() for p in create(name).parameters())
    assert count / 1e6 == pytest.approx(MILLIONS[name], abs=0.05)


def test_unknown_name():
    with pytest.raises(ModelError, match="choose one of: mobilevos-resnet18"):
        create("mobilevos-resnet50")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("height", "width", "objects"), [(16, 16, 1), (48, 80, 3)])
def test_shapes(name, height, width, objects):
    model = create(name)
    image, given = torch.randn(1, 3, height, width), torch.rand(objects, height, width)
    with torch.inference_mode():
        key, features = model.encode_query(image)
        logits, soft, value = run(model, image, given)
    positions = height * width // 256
    assert key.shape == (1, positions, 64)
    assert value.shape == (objects, positions, CONFIGS[name].value_dim)
    for stride, feature in ((16, features.f16), (8, features.f8), (4, features.f4)):
        assert feature.shape[2:] == (height // stride, width // stride)
    assert logits.shape == (objects, height // 4, width // 4)
    assert soft.shape == (objects + 1, height, width)
    torch.testing.assert_close(soft.sum(0), torch.ones(height, width))


@pytest.mark.parametrize("name", CONFIGS)
def test_folding_batch_norms_changes_nothing(name):
    model = randomised(name)
    image, given = torch.randn(1, 3, 32, 48), torch.rand(2, 32, 48)
    with torch.inference_mode():
        before = run(model, image, given)
        fuse(model)
        after = run(model, image, given)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_objects_do_not_leak_into_each_other_but_for_the_others_mask():
    model = randomised("mobilevos-mobilenetv2")
    image, given = torch.randn(1, 3, 32, 32), torch.rand(3, 32, 32)
    with torch.inference_mode():
        logits, _, _ = run(model, image, given)
        order = [2, 0, 1]
        permuted, _, _ = run(model, image, given[order])
    torch.testing.assert_close(logits[order], permuted, rtol=1e-4, atol=1e-4)


def test_half_precision_on_trained_weights(clip):
    name = "mobilevos-mobilenetv2"
    model = load(name, weights_path(name))
    frames, mask = clip
    image = torch.tensor(frames[0][:176]).permute(2, 0, 1)[None] / 127.5 - 1
    given = torch.tensor(mask[:176] > 0)[None].float()
    with torch.inference_mode():
        _, single, _ = run(model, image, given)
        _, half, _ = run(model.half(), image.half(), given.half())
    assert half.dtype == torch.float32, "aggregation is fp32 in any precision"
    both = ((single[1] > 0.5) & (half[1] > 0.5)).sum()
    either = ((single[1] > 0.5) | (half[1] > 0.5)).sum()
    assert both / either > 0.98


def test_aggregation_against_float64(rng):
    p = rng.uniform(0, 1, (4, 6, 7))
    p[:, 0, 0], p[:, 0, 1], p[0, 1, 1] = 0, 1, 1
    got = aggregate(torch.from_numpy(p).float()).numpy()
    full = np.concatenate([np.prod(1 - p, 0, keepdims=True), p]).clip(1e-7, 1 - 1e-7)
    odds = full / (1 - full)
    np.testing.assert_allclose(got, odds / odds.sum(0), rtol=2e-2, atol=1e-5)
    np.testing.assert_allclose(got.sum(0), 1, atol=1e-5)


def test_tokens_and_grid_are_inverse():
    x = torch.randn(2, 5, 3, 4)
    assert torch.equal(image_grid(tokens(x), 3, 4), x)
    assert tokens(x).shape == (2, 12, 5)
    assert torch.equal(tokens(x)[1, 1 * 4 + 2], x[1, :, 1, 2]), "row by row"


def test_strided_convolutions_pad_as_tensorflow():
    """One pixel lights up: "SAME" padding on even sizes sees it from row (r − 1) // 2 on."""
    stem = MobileNetV2().eval().stem
    torch.nn.init.ones_(stem[0].weight)
    x = torch.zeros(1, 3, 8, 8)
    x[0, 0, 4, 4] = 1
    assert (stem(x)[0, 0] > 0).nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
