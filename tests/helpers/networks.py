"""Networks with random weights, and one pass through their stages."""

from __future__ import annotations

import torch

from engine.model import aggregate, create, upsample_logits


def randomised(name: str, seed: int = 0) -> torch.nn.Module:
    """A network whose batch norms do something, unlike freshly made ones."""
    torch.manual_seed(seed)
    model = create(name)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.normal_(module.weight, 1, 0.1)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return model


def run(model, image, given):
    """All four stages once: the frame remembers itself. Returns logits, probabilities, value."""
    key, features = model.encode_query(image)
    value = model.encode_value(image, given, features.f16)
    slots = torch.zeros(len(given), 1, dtype=torch.int32)
    readout = model.read_memory(key[0], key, value[None], slots)
    logits = model.decode(readout, features)
    return logits, aggregate(torch.sigmoid(upsample_logits(logits))), value
