"""The blocks that the encoders and the decoder share: ResBlock, CBAM, ASPP, upsampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResBlock(nn.Module):
    """Pre-activation residual block without normalisation; ``shortcut`` is its kernel size.

    The shortcut is a convolution only where the number of channels changes.
    """

    def __init__(self, cin: int, cout: int, shortcut: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.shortcut = (
            nn.Identity() if cin == cout else nn.Conv2d(cin, cout, shortcut, padding=shortcut // 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(F.relu(x))))
        return y + self.shortcut(x)  # type: ignore[no-any-return]


class CBAM(nn.Module):
    """Channel, then spatial attention (Woo et al., "CBAM", ECCV 2018), as in STCN's value fuser."""

    def __init__(self, channels: int, reduction: int = 16, kernel: int = 7) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1),
        )
        self.spatial = nn.Conv2d(2, 1, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        mean, peak = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        x = x * torch.sigmoid(self.mlp(mean) + self.mlp(peak))
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.spatial(pooled))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., "DeepLabv3", 2017): one view at several scales.

    Five branches (1×1, 3×3 at dilations 6, 12 and 18, image pool) and a 1×1 projection, all
    ``channels`` wide; convolutions without bias, each with batch norm.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

        def branch(kernel: int, dilation: int = 1, cin: int = channels) -> nn.Sequential:
            pad = dilation * (kernel // 2)
            conv = nn.Conv2d(cin, channels, kernel, padding=pad, dilation=dilation, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())

        self.branches = nn.ModuleList([branch(1), branch(3, 6), branch(3, 12), branch(3, 18)])
        self.pool = branch(1)
        self.project = branch(1, cin=5 * channels)

    def forward(self, x: Tensor) -> Tensor:
        views = [branch(x) for branch in self.branches]
        pooled = self.pool(x.mean((2, 3), keepdim=True)).expand_as(views[0])
        return self.project(torch.cat([*views, pooled], 1))  # type: ignore[no-any-return]


class UpBlock(nn.Module):
    """Twice the resolution: upsample, add the skip feature (3×3 convolution), ResBlock."""

    def __init__(self, skip: int, cin: int, cout: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(skip, cin, 3, padding=1)
        self.block = ResBlock(cin, cout, shortcut=3)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map x [K, cin, h, w] and skip [1, Cs, 2h, 2w] to [K, cout, 2h, 2w]."""
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.block(x + self.skip(skip))  # type: ignore[no-any-return]
