"""Training on a CPU without the slow paths of its convolutions; the results stay the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_backward = torch.ops.aten.convolution_backward


class _StridedDepthwise(torch.autograd.Function):
    """A depthwise 3×3 convolution of stride 2 without padding, in bf16.

    oneDNN computes the gradient of its input some fifty times slower than that of stride 1. So the
    output's gradient is spread over a grid of stride 1, with zeros between: the same sums.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias = bias is not None
        return F.conv2d(x, weight, bias, 2, 0, 1, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        channels = weight.shape[0]
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        common = ([1, 1], False, [0, 0], channels)
        _, for_weight, for_bias = _backward(
            grad, x, weight, [channels], [2, 2], [0, 0], *common, [False, True, ctx.bias]
        )
        for_input = None
        if ctx.needs_input_grad[0]:
            spread = torch.zeros_like(x)
            height, width = grad.shape[-2:]
            spread[:, :, 1 : 2 * height : 2, 1 : 2 * width : 2] = grad
            for_input = _backward(
                spread, x, weight, None, [1, 1], [1, 1], *common, [True, False, False]
            )[0]
        return for_input, for_weight, for_bias


def speed_up(model: nn.Module) -> None:
    """Replace what is slow on a CPU in bf16: depthwise strides, activations that copy."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and module.stride == (2, 2):
            module.forward = _strided(module)  # type: ignore[method-assign]
        if isinstance(module, nn.ReLU6 | nn.ReLU):
            module.inplace = True


def _strided(conv: nn.Conv2d) -> Any:
    def forward(x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return F.conv2d(x, conv.weight, conv.bias, 2, 0, 1, conv.groups)
        dtype = torch.get_autocast_dtype(x.device.type)
        bias = None if conv.bias is None else conv.bias.to(dtype)
        y: Tensor = _StridedDepthwise.apply(x.to(dtype), conv.weight.to(dtype), bias)  # type: ignore[no-untyped-call]
        return y

    return forward
