"""Folders in the layout of DAVIS, with rectangles that drift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from engine.media.masks import write_mask

SIZE = (60, 90)
FRAMES = 6


def truth(t: int, objects: int) -> np.ndarray:
    """Ids [H, W] of frame ``t``: rectangles that drift to the right."""
    ids = np.zeros(SIZE, np.uint8)
    for k in range(1, objects + 1):
        top, left = 8 + 26 * (k - 1), 10 + 3 * t + 5 * k
        ids[top : top + 20, left : left + 30] = k
    return ids


def davis(root: Path, sequences: dict[str, int], folder: str = "480p") -> Path:
    """Write a DAVIS folder; ``sequences`` gives the objects of each, one makes it as DAVIS-2016."""
    for name, objects in sequences.items():
        images, masks = (root / kind / folder / name for kind in ("JPEGImages", "Annotations"))
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for t in range(FRAMES):
            ids = truth(t, objects)
            picture = np.repeat(ids[..., None] * 60 + t, 3, 2)
            Image.fromarray(picture).save(images / f"{t:05d}.jpg")
            if objects == 1:
                Image.fromarray(ids * 255).save(masks / f"{t:05d}.png")
            else:
                write_mask(masks / f"{t:05d}.png", ids)
    return root
