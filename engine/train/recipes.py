"""The named recipes, ``python -m engine.train --config NAME``."""

from __future__ import annotations

from engine.train.config import Distillation, Phase, Teacher, TrainConfig

LARGE = (320, 544)  # pixels; the batch is halved with it

# The teacher of every student is the best network that is shipped, with a memory of all frames:
# what the students have to do without. A wider network did not surpass it, see the model card.
TEACHER = Teacher("mobilevos-mobilenetv2", every=2)
DISTIL = Distillation(logits=0.5, representation=0.02)

# Clips of the campaign: every kind of variety that the first recipes lacked.
VARIED = {"composed": 0.35, "zoom": 0.3, "thin": 0.12, "haze": 0.12, "pairs": 0.3}

CONFIGS = {
    # The long cheap stage, from ImageNet: a plateau that a shorter run with a decay branches from.
    "campaign": TrainConfig(
        model="mobilevos-mobilenetv2",
        fused=True,
        seed=31,
        steps=12500,
        warmup=300,
        decay=0.0,
        lr_query=5e-5,
        lr_value=2e-4,
        lr_new=5e-4,
        ema=0.999,
        corrupt=0.25,
        occluder=0.35,
        frozen=3,
        phases=(
            Phase(
                until=1.0, frames=3, supervised=2, static=0.6, gap=12,
                size=(192, 320), batch=8, **VARIED,
            ),
        ),
    ),
    "mobilenetv2-first": TrainConfig(
        model="mobilevos-mobilenetv2",
        steps=3200,
        phases=(
            Phase(until=0.20, frames=3, supervised=2, static=0.7, gap=5, pairs=0.25),
            Phase(until=0.55, frames=4, supervised=2, static=0.35, gap=15, pairs=0.3),
            Phase(until=0.85, frames=6, supervised=2, static=0.25, gap=9, pairs=0.3),
            Phase(
                until=1.0, frames=6, supervised=2, static=0.2, gap=9, pairs=0.3,
                size=LARGE, batch=2,
            ),
        ),
    ),
    # Gets over its own errors: parts are taken from remembered masks, foreign regions added.
    "mobilenetv2": TrainConfig(
        model="mobilevos-mobilenetv2",
        start="mobilenetv2-first",
        fused=True,
        seed=1,
        steps=900,
        warmup=40,
        lr_query=2e-5,
        lr_value=6e-5,
        lr_new=2e-4,
        ema=0.995,
        corrupt=0.4,
        occluder=0.4,
        phases=(
            Phase(until=0.6, frames=4, supervised=2, static=0.3, gap=12, pairs=0.3),
            Phase(
                until=1.0, frames=5, supervised=2, static=0.25, gap=10, pairs=0.3,
                size=LARGE, batch=2,
            ),
        ),
    ),
    "noaspp": TrainConfig(
        model="mobilevos-mobilenetv2-noaspp",
        start="mobilevos-mobilenetv2",
        fused=True,
        teacher=TEACHER,
        distil=DISTIL,
        steps=320,
        warmup=30,
        lr_query=2e-5,
        lr_value=5e-5,
        lr_new=3e-4,
        ema=0.99,
        corrupt=0.4,
        occluder=0.4,
        phases=(
            Phase(until=0.65, frames=5, supervised=2, static=0.3, gap=9, pairs=0.3),
            Phase(
                until=1.0, frames=5, supervised=2, static=0.25, gap=9, pairs=0.3,
                size=LARGE, batch=2,
            ),
        ),
    ),
    "resnet18-features": TrainConfig(
        model="mobilevos-resnet18",
        stage="features",
        teacher=Teacher("mobilevos-mobilenetv2"),
        seed=11,
        steps=1500,
        warmup=80,
        lr_new=2e-3,
        weight_decay=0.02,
        ema=0.99,
        phases=(
            Phase(
                until=1.0, frames=1, supervised=1, static=0.75, gap=5, pairs=0.4,
                size=(192, 320), batch=8,
            ),
        ),
    ),
    "resnet18": TrainConfig(
        model="mobilevos-resnet18",
        start="resnet18-features",
        decoder="mobilevos-mobilenetv2",
        fused=True,
        teacher=TEACHER,
        distil=DISTIL,
        seed=2,
        steps=1200,
        warmup=60,
        lr_query=8e-5,
        lr_value=1e-4,
        lr_new=2e-4,
        ema=0.995,
        corrupt=0.35,
        occluder=0.35,
        frozen=0,
        phases=(
            Phase(until=0.35, frames=3, supervised=2, static=0.6, gap=6, pairs=0.3),
            Phase(until=0.75, frames=4, supervised=2, static=0.3, gap=12, pairs=0.3),
            Phase(
                until=1.0, frames=5, supervised=2, static=0.25, gap=10, pairs=0.3,
                size=LARGE, batch=2,
            ),
        ),
    ),
    # Longer, and with larger gaps: the network that starts without ImageNet needs more steps.
    "resnet18-long": TrainConfig(
        model="mobilevos-resnet18",
        start="resnet18",
        fused=True,
        teacher=TEACHER,
        distil=DISTIL,
        seed=5,
        steps=500,
        warmup=30,
        lr_query=8e-5,
        lr_value=1e-4,
        lr_new=2e-4,
        ema=0.99,
        corrupt=0.4,
        occluder=0.4,
        frozen=0,
        phases=(
            Phase(until=0.6, frames=4, supervised=2, static=0.3, gap=14, pairs=0.3),
            Phase(
                until=1.0, frames=5, supervised=2, static=0.25, gap=12, pairs=0.3,
                size=LARGE, batch=2,
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
