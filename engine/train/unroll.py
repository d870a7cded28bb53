"""A batch of clips through the network, frame by frame, as at inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from engine.model import Features, MobileVOS, aggregate, upsample_logits

Edit = Callable[[Tensor, Tensor], Tensor]


class Prediction(NamedTuple):
    """One frame of B clips with K objects each, on images of H×W."""

    probabilities: Tensor  # [B, K+1, H, W], background first, fp32
    logits: Tensor  # [B, K, H/4, W/4], each object's, before they are merged
    feature: Tensor  # [B, K, D/2, H/4, W/4], what the decoder's last convolution sees


def unroll(
    model: MobileVOS,
    frames: Tensor,
    labels: Tensor,
    objects: int,
    supervised: int,
    every: int = 0,
    edit: Edit | None = None,
) -> list[Prediction]:
    """Segment a batch of clips on the network's own predictions.

    The memory is frame 0, the most recent frame and, unless ``every`` is 0, each frame whose number
    is a multiple of it. frames [B, T, 3, H, W] in −1…1, labels [B, T, H, W] (only frame 0 is looked
    at) → the last ``supervised`` frames; the frames before run without a gradient. ``edit`` maps
    the masks [B, K, H, W] that are to be remembered, and their image [B, 3, H, W], to others.
    """
    batch, length = frames.shape[:2]
    size = frames.shape[-2:]
    owner = torch.arange(batch, device=frames.device).repeat_interleave(objects)

    def encode_value(t: int, masks: Tensor, features: Features) -> Tensor:
        """Masks [B, K, H, W] → value [B, K, N, Cv]."""
        others = masks.sum(1, keepdim=True) - masks
        pair = torch.stack([masks, others], 2).flatten(0, 1)
        seen = torch.cat([frames[owner, t], pair], 1)
        value: Tensor = model.encode_value.encode(seen, features.f16[owner])
        return value.float().reshape(batch, objects, *value.shape[1:])

    def read(key: Tensor, memory: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Key [B, N, Ck] → readout [B·K, N, Cv] of all frames in the memory."""
        slots = torch.arange(len(memory), device=key.device).expand(objects, -1)
        keys = torch.stack([k for k, _ in memory], 1)
        values = torch.stack([v for _, v in memory], 1)
        return torch.cat(
            [model.read_memory(key[b], keys[b], values[b], slots) for b in range(batch)]
        )

    def queries(start: int, stop: int) -> list[tuple[Tensor, Features]]:
        """Key and features of each frame from ``start`` to ``stop``, encoded together."""
        many = frames[:, start:stop].transpose(0, 1)
        key, features = model.encode_query(many.flatten(0, 1))
        split = (many.shape[0], batch)
        apart = (x.unflatten(0, split).unbind(0) for x in features)
        return [
            (k, Features(*f)) for k, *f in zip(key.float().unflatten(0, split), *apart, strict=True)
        ]

    given = torch.stack([labels[:, 0] == k for k in range(1, objects + 1)], 1).float()
    learns = length - supervised
    (key, features), *asked = queries(0, 1)
    with torch.no_grad():
        asked += queries(1, learns) if learns > 1 else []
    asked += queries(max(1, learns), length)
    kept = [(key, encode_value(0, given, features))]
    recent: list[tuple[Tensor, Tensor]] = []  # the last frame, where it is not a kept one
    results = []
    for t in range(1, length):
        with torch.set_grad_enabled(torch.is_grad_enabled() and t >= learns):
            key, features = asked[t - 1]
            readout = read(key, kept + recent)
            feature = model.decode.embed(readout, Features(*(x[owner] for x in features)))
            logits = model.decode.predict(feature)[:, 0]
            masks = torch.sigmoid(upsample_logits(logits)).reshape(batch, objects, *size)
            probabilities = aggregate(masks, dim=1)
            if t >= learns:
                per_clip = (batch, objects)
                results.append(
                    Prediction(
                        probabilities, logits.unflatten(0, per_clip), feature.unflatten(0, per_clip)
                    )
                )
            if t < length - 1:
                masks = probabilities[:, 1:]
                masks = edit(masks, frames[:, t]) if edit else masks
                entry = (key, encode_value(t, masks, features))
                if every and t % every == 0:
                    kept, recent = [*kept, entry], []
                else:
                    recent = [entry]
    return results
