"""The main stage: clips on the network's own predictions, from the labels and from a teacher."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from engine.model import MobileVOS
from engine.train.config import Distillation, TrainConfig
from engine.train.corrupt import corrupt_masks
from engine.train.data import Batch
from engine.train.distill import (
    blend,
    correlation,
    logit_divergence,
    near_boundary,
    pick,
    representation,
)
from engine.train.losses import bootstrapped_cross_entropy, dice, mean_iou
from engine.train.unroll import Edit, Prediction, unroll


class Following(nn.Module):
    """A network that learns to follow objects, beside a frozen teacher if there is one to ask."""

    def __init__(self, model: MobileVOS, teacher: MobileVOS | None, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.frozen = [teacher] if teacher else []  # in a list: not a part of the state
        self.eval()

    @property
    def network(self) -> nn.Module:
        """What a checkpoint holds."""
        return self.model

    def groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        """Freeze the query encoder's first parts; a rate for each of pretrained and new parts."""
        encoder = self.model.encode_query.backbone
        for part in (encoder.stem, *encoder.stages)[: config.frozen]:
            part.requires_grad_(False)
        query = [p for p in encoder.parameters() if p.requires_grad]
        value = list(self.model.encode_value.backbone.parameters())
        old = {id(p) for p in [*encoder.parameters(), *value]}
        new = [p for p in self.model.parameters() if id(p) not in old]
        rates = ((query, config.lr_query), (value, config.lr_value), (new, config.lr_new))
        return [{"params": params, "lr": lr, "top": lr} for params, lr in rates]

    def forward(self, batch: Batch, supervised: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the last ``supervised`` frames of each clip, and its parts."""
        config, distil = self.config, self.config.distil
        device = next(self.model.parameters()).device
        frames = normalise(batch.frames, device)
        labels = torch.as_tensor(batch.labels).to(device).long()
        counts = torch.as_tensor(batch.weights).to(device)
        edit = spoiler(batch, config.corrupt) if config.corrupt else None
        clip = (frames, labels, batch.objects, supervised)
        results = unroll(self.model, *clip, every=config.every, edit=edit)
        taught: list[Prediction] | list[None] = [None] * len(results)
        if self.frozen and config.teacher:
            with torch.no_grad():
                taught = unroll(self.frozen[0], *clip, every=config.teacher.every)
        parts: dict[str, list[Tensor]] = defaultdict(list)
        # In fp32, whatever the convolutions run in.
        with torch.autocast(device.type, enabled=False):
            for i, (ours, theirs) in enumerate(zip(results, taught, strict=True)):
                target = labels[:, i - len(results)]
                soft = ours.probabilities
                count = counts[:, i - len(results)]
                parts["cross_entropy"] += [
                    bootstrapped_cross_entropy(soft, target, config.hard, count)
                ]
                parts["dice"] += [dice(soft, target)]
                parts["iou"] += [mean_iou(soft, target)]
                if distil.logits and theirs:
                    z = (ours.logits.float(), theirs.logits.float())
                    parts["logits"] += [logit_divergence(*z, distil.temperature)]
                if distil.representation:
                    rngs = [np.random.default_rng([s, 2, i]) for s in batch.seeds]
                    parts["representation"] += [relations(ours, theirs, target, distil, rngs)]
        means = {name: torch.stack(part).mean() for name, part in parts.items()}
        weights = {"cross_entropy": 1, "dice": 1, "logits": distil.logits,
                   "representation": distil.representation, "iou": 0}  # fmt: skip
        loss = torch.stack([weights[n] * part for n, part in means.items() if weights[n]]).sum()
        return loss, means


def normalise(frames: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Frames uint8 [B, T, H, W, 3] → [B, T, 3, H, W] in −1…1 on ``device``."""
    return torch.as_tensor(frames).to(device).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def asks_teacher(distil: Distillation) -> bool:
    """Whether a loss looks at the teacher at all."""
    return bool(distil.logits or (distil.representation and distil.omega))


def spoiler(batch: Batch, share: float) -> Edit:
    """Corrupts remembered masks, each clip's by random numbers of its own."""
    rngs = [np.random.default_rng([s, 1]) for s in batch.seeds]

    def edit(masks: Tensor, images: Tensor) -> Tensor:
        edited = [
            corrupt_masks(rng, masks[b : b + 1], images[b : b + 1], share)
            for b, rng in enumerate(rngs)
        ]
        return torch.cat(edited)

    return edit


def relations(
    ours: Prediction,
    theirs: Prediction | None,
    labels: Tensor,
    distil: Distillation,
    rngs: Sequence[np.random.Generator],
) -> Tensor:
    """N · L_repr of each object's pixels, mean over clips and objects, in bits.

    labels [B, H, W]; each object is a sample of two classes, itself and all else. One that has no
    boundary in the frame counts 0.
    """
    batch, objects = ours.feature.shape[:2]
    total = torch.zeros((), device=labels.device)
    for b, rng in enumerate(rngs):
        own = torch.stack([labels[b] == k for k in range(1, objects + 1)]).float()
        masks = F.avg_pool2d(own[:, None], 4)[:, 0] >= 0.5
        inside = near_boundary(masks, distil.band).flatten(1)
        for k in range(objects):
            at = pick(inside[k], distil.points, rng)
            if not len(at):
                continue
            student = correlation(columns(ours, b, k, at))
            teacher = correlation(columns(theirs, b, k, at)) if theirs and distil.omega else None
            target = blend(teacher, masks[k].flatten()[at], distil.omega)
            total = total + representation(student, target) * len(at)
    return total / (batch * objects)


def columns(prediction: Prediction, b: int, k: int, at: Tensor) -> Tensor:
    """The features of pixels ``at`` of one object, fp32 [N, C]."""
    return prediction.feature[b, k].flatten(1)[:, at].T.float()
