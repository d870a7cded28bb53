"""First stage of a network without ImageNet weights: learn another, trained network's features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.model import MobileVOS
from engine.train.config import TrainConfig
from engine.train.data import Batch
from engine.train.follow import normalise

WEIGHTS = {"key": 2.0, "value": 2.0, "compressed": 1.0, "f16": 1.0, "f8": 0.5, "f4": 0.5}


def unexplained(student: Tensor, teacher: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Share of the teacher's variance that the student does not explain: Σ(s−t)² / Σ(t−mean t)².

    ``dims`` are the axes that the mean is taken over (all but the channels). 0 is a perfect copy,
    1 no better than a constant.
    """
    teacher = teacher.float()
    spread = (teacher - teacher.mean(dims, keepdim=True)).square().sum()
    return (student.float() - teacher).square().sum() / spread


class Imitation(nn.Module):
    """A student beside a frozen teacher; heads map the student's features to the teacher's width.

    Batch norms use the batch's statistics: single frames make a batch large enough.
    """

    def __init__(self, student: MobileVOS, teacher: MobileVOS) -> None:
        super().__init__()
        self.student = student
        self.frozen = [teacher]  # in a list: not a part of the state
        pairs = zip(student.config.backbone.channels, teacher.config.backbone.channels, strict=True)
        self.heads = nn.ModuleList([nn.Conv2d(s, t, 1) for s, t in pairs])
        self.train()

    @property
    def network(self) -> nn.Module:
        """What a checkpoint holds."""
        return self

    def groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        """All that is learnt, at the rate of new parts; the decoder is not."""
        learnt = [p for n, p in self.named_parameters() if not n.startswith("student.decode.")]
        self.student.decode.requires_grad_(False)
        return [{"params": learnt, "lr": config.lr_new, "top": config.lr_new}]

    def forward(self, batch: Batch, supervised: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the clips' first frames with one of their objects, and its parts."""
        device = next(self.parameters()).device
        image = normalise(batch.frames[:, :1], device)[:, 0]
        label = torch.as_tensor(batch.labels[:, 0]).to(device)
        chosen = [np.random.default_rng([s, 3]).integers(1, batch.objects + 1) for s in batch.seeds]
        own = label == torch.tensor(chosen, device=device)[:, None, None]
        planes = torch.stack([own, (label > 0) & ~own], 1).to(image.dtype)
        parts = self.compare(image, torch.cat([image, planes], 1))
        total = torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum()
        return total, parts

    def compare(self, image: Tensor, seen: Tensor) -> dict[str, Tensor]:
        """Losses by name for image [B, 3, H, W] and seen [B, 5, H, W], image and mask planes."""
        with torch.no_grad():
            key_t, t = self.frozen[0].encode_query(image)
            value_t = self.frozen[0].encode_value.encode(seen, t.f16)
        key, s = self.student.encode_query(image)
        value = self.student.encode_value.encode(seen, s.f16)
        losses = {
            "key": unexplained(key, key_t, (0, 1)),
            "value": unexplained(value, value_t, (0, 1)),
            "compressed": unexplained(s.compressed, t.compressed, (0, 2, 3)),
        }
        for name, head in zip(("f16", "f8", "f4"), self.heads, strict=True):
            losses[name] = unexplained(head(getattr(s, name)), getattr(t, name), (0, 2, 3))
        return losses
