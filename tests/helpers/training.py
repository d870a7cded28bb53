"""Data to train on, and one step of training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from engine.train.config import Distillation, Teacher
from engine.train.data import Clips
from engine.train.distributed import Place
from engine.train.loop import Trainer
from engine.train.recipes import CONFIGS
from engine.train.sources import load_davis, load_stills

SMOKE = CONFIGS["smoke"]


def scene(seed: int, size: tuple[int, int] = (96, 144), objects: int = 2) -> tuple:
    """Noise with bright rectangles: frame uint8 [H, W, 3] and ids [H, W]."""
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 100, (*size, 3), np.uint8)
    ids = np.zeros(size, np.uint8)
    for k in range(1, objects + 1):
        y, x = rng.integers(5, 25), rng.integers(5, 25) + 50 * (k - 1)
        ids[y : y + 50, x : x + 40] = k
        frame[ids == k] = rng.integers(120, 256, 3)
    return frame, ids


def training_folder(root: Path) -> Path:
    """A DAVIS folder with three sequences of 4 frames, one of them excluded, and two stills."""
    for number, name in enumerate(("ant", "bus", "cat")):
        for kind in ("JPEGImages", "Annotations"):
            (root / "davis" / kind / "480p" / name).mkdir(parents=True)
        for t in range(4):
            frame, ids = scene(10 * number + t)
            stem = Path("480p", name, f"{t:05d}")
            Image.fromarray(frame).save(root / "davis/JPEGImages" / stem.with_suffix(".jpg"))
            Image.fromarray(ids).save(root / "davis/Annotations" / stem.with_suffix(".png"))
    for kind in ("images", "masks"):
        (root / "stills" / "set" / kind).mkdir(parents=True)
    for n in range(2):
        frame, ids = scene(100 + n, (80, 100), objects=1)
        Image.fromarray(frame).save(root / "stills" / "set" / "images" / f"{n}.png")
        Image.fromarray(ids).save(root / "stills" / "set" / "masks" / f"{n}.png")
    return root


def doubled(batch: int):
    """The smoke recipe with a teacher, errors in the masks and ``batch`` clips a process."""
    phases = tuple(dataclasses.replace(p, batch=batch) for p in SMOKE.phases)
    return dataclasses.replace(
        SMOKE, phases=phases, corrupt=1.0, distil=Distillation(logits=1.0, representation=0.1),
        teacher=Teacher("mobilevos-mobilenetv2"), seed=2,
    )  # fmt: skip


def loaded(root: Path) -> Clips:
    """What one sequence and the stills of `training_folder` give."""
    return Clips(load_davis([root / "davis"], ("bus",)), load_stills(root / "stills"))


def gradients(clips: Clips, out: Path, here: Place, batch: int) -> dict:
    """The gradients of the first step by name, and the loss of this process."""
    trainer = Trainer(doubled(batch), clips, out, here)
    loss, _ = trainer.loss()
    loss.backward()
    grads = {n: p.grad for n, p in trainer.network.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}
