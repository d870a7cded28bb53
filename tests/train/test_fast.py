"""The trainer's faster convolutions give the results of PyTorch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from engine.model.backbones import ConvBN
from engine.train.fast import speed_up


@pytest.mark.parametrize("size", [(12, 20), (16, 14)])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_a_strided_depthwise_convolution(size, bias):
    torch.manual_seed(0)
    block = ConvBN(24, 24, stride=2, groups=24).eval()
    if bias:
        block[0].bias = nn.Parameter(torch.randn(24))
    fast = copy.deepcopy(block)
    speed_up(fast)
    x = torch.randn(2, 24, *size).to(memory_format=torch.channels_last)
    found = []
    for model, dtype in ((block, torch.float64), (fast, torch.bfloat16)):
        model = model.to(torch.float64) if dtype == torch.float64 else model
        own = x.to(next(model.parameters()).dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = model(own)
        y.double().square().sum().backward()
        found.append([y, own.grad, *(p.grad for p in model[0].parameters())])
    for want, got in zip(*found, strict=True):
        scale = want.abs().max()
        assert ((got.double() - want).abs().max() / scale).item() < 0.02  # bf16 has 8 bits
