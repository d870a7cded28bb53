"""Image backbones cut at stride 16: MobileNetV2 and ResNet18, with any number of input channels.

Both map ``[B, C, H, W]`` (H and W multiples of 16, values in −1…1) to features at strides 16, 8
and 4, in this order.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

Features = tuple[Tensor, Tensor, Tensor]


class ConvBN(nn.Sequential):
    """Convolution, batch norm and, unless ``act`` is None, an activation.

    A stride of 2 pads at the right and the bottom only, TensorFlow's "SAME" for even sizes: the
    ImageNet weights that MobileNetV2 starts from were trained so.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        act: type[nn.Module] | None = nn.ReLU6,
    ) -> None:
        same = kernel // 2 if stride == 1 else 0
        conv = nn.Conv2d(cin, cout, kernel, stride, same, groups=groups, bias=False)
        layers = [conv, nn.BatchNorm2d(cout, eps=1e-3)]
        super().__init__(*layers, *([act()] if act else []))
        self.pad = stride == 2 and kernel > 1

    def forward(self, x: Tensor) -> Tensor:
        if self.pad:
            x = F.pad(x, (0, 1, 0, 1))
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return y


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise 3×3, project 1×1 (Sandler et al., "MobileNetV2", CVPR 2018)."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        mid = cin * expand
        self.expand = ConvBN(cin, mid, kernel=1) if expand > 1 else nn.Identity()
        self.depthwise = ConvBN(mid, mid, stride=stride, groups=mid)
        self.project = ConvBN(mid, cout, kernel=1, act=None)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 up to its last block at stride 16."""

    channels = (96, 32, 24)
    #            stride 4        stride 8        stride 16
    settings = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = ConvBN(in_channels, 32, stride=2)
        stages, cin = [], 32
        for expand, cout, repeats, stride in self.settings:
            blocks = []
            for i in range(repeats):
                blocks.append(InvertedResidual(cin, cout, stride if i == 0 else 1, expand))
                cin = cout
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> Features:
        x = self.stages[0](self.stem(x))
        f4 = self.stages[1](x)
        f8 = self.stages[2](f4)
        return self.stages[4](self.stages[3](f8)), f8, f4


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al., "Deep residual learning", CVPR 2016)."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(cin, cout, stride=stride, act=nn.ReLU)
        self.conv2 = ConvBN(cout, cout, act=None)
        same = stride == 1 and cin == cout
        self.shortcut = nn.Identity() if same else ConvBN(cin, cout, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet18 up to ``layer3``."""

    channels = (256, 128, 64)

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.stages = nn.ModuleList(
            nn.Sequential(BasicBlock(cin, cout, stride), BasicBlock(cout, cout, 1))
            for cin, cout, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2))
        )

    def forward(self, x: Tensor) -> Features:
        f4 = self.stages[0](self.pool(self.stem(x)))
        f8 = self.stages[1](f4)
        return self.stages[2](f8), f8, f4
