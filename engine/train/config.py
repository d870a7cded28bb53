"""Training configuration: frozen dataclasses, and the named recipes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """One part of a curriculum.

    ``until``: the fraction of all steps at which the phase ends. ``frames``: frames a clip;
    ``supervised``: how many of the last ones have a loss and a gradient, the ones before only roll
    the memory on. ``static``: share of clips made from one still image. ``gap``: the largest step
    between neighbouring video frames. ``pairs``: share of batches with two objects a clip.
    ``size``: height and width of the crop in pixels, multiples of 16. ``batch``: clips a step.
    """

    until: float
    frames: int
    supervised: int
    static: float
    gap: int
    pairs: float
    size: tuple[int, int] = (224, 384)
    batch: int = 4


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run. Rates are AdamW's, at the top of the cosine."""

    model: str
    phases: tuple[Phase, ...]
    steps: int
    seed: int = 0
    lr_query: float = 5e-5  # pretrained; its stem and first stages are frozen
    lr_value: float = 2e-4  # pretrained, but for the mask channels
    lr_new: float = 5e-4
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 5.0
    ema: float = 0.998
    hard: float = 0.25  # share of the pixels that the cross-entropy keeps, the hardest
    occluder: float = 0.3  # share of one-object clips over which something untracked passes
    frozen_stages: int = 2  # of the query encoder
    pretrained: bool = True  # start the backbones from ImageNet weights


CONFIGS = {
    "mobilenetv2-first": TrainConfig(
        model="mobilevos-mobilenetv2",
        steps=3200,
        phases=(
            Phase(until=0.20, frames=3, supervised=2, static=0.7, gap=5, pairs=0.25),
            Phase(until=0.55, frames=4, supervised=2, static=0.35, gap=15, pairs=0.3),
            Phase(until=0.85, frames=6, supervised=2, static=0.25, gap=9, pairs=0.3),
            Phase(
                until=1.0, frames=6, supervised=2, static=0.2, gap=9, pairs=0.3,
                size=(320, 544), batch=2,
            ),
        ),
    ),
    # Learns nothing; a minute of it shows that training, killing and resuming work.
    "smoke": TrainConfig(
        model="mobilevos-mobilenetv2-noaspp",
        steps=8,
        warmup=2,
        pretrained=False,
        phases=(
            Phase(
                until=0.5, frames=3, supervised=2, static=0.5, gap=2, pairs=0.5,
                size=(64, 96), batch=2,
            ),
            Phase(
                until=1.0, frames=3, supervised=1, static=0.5, gap=3, pairs=0.5,
                size=(64, 96), batch=1,
            ),
        ),
    ),
}  # fmt: skip
