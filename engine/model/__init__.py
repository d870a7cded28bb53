"""The network in plain PyTorch, a file a stage: the reference that every backend is held to."""

from engine.model.config import CONFIGS, Config
from engine.model.decode import aggregate, scores, upsample_logits
from engine.model.encode_query import Features
from engine.model.mobilevos import MobileVOS, create, fuse, load

__all__ = [
    "CONFIGS",
    "Config",
    "Features",
    "MobileVOS",
    "aggregate",
    "create",
    "fuse",
    "load",
    "scores",
    "upsample_logits",
]
