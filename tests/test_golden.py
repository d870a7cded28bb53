"""The demo clip's masks are those that were looked at when the weights were trained.

Backends share the decoder, the resizing and the masks' way back: what is wrong there passes every
comparison between them. New weights make new masks; look at them before they are committed:

MVOS_UPDATE_GOLDEN=1 pytest tests/test_golden.py
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from engine import Segmenter
from engine.data.demo import CLIP, MASK
from engine.media.masks import load_ids, resize_ids, write_mask
from engine.media.open import open_source

FOLDER = Path(__file__).parent / "golden" / "demo"
FRAMES, EVERY, SIZE = 60, 3, 240
STORED = (180, 320)  # (H, W)


def demo_masks(swap: bool = False, shift: int = 0) -> dict[str, np.ndarray]:
    """Every third mask of the clip's first frames, scaled to STORED, by file name."""
    source = open_source(CLIP)
    frames = (f.image[..., ::-1] if swap else f.image for f in source.frames(end=FRAMES))
    frames = (np.ascontiguousarray(np.roll(f, shift, axis=1)) for f in frames)
    with Segmenter.load(backend="cpu", size=SIZE) as seg:
        masks = list(seg.segment(frames, load_ids(Path(MASK))))
    source.close()
    return {f"{t:05d}.png": resize_ids(masks[t], STORED) for t in range(EVERY - 1, FRAMES, EVERY)}


def worst_iou(got: dict[str, np.ndarray]) -> float:
    """The least IoU of a frame's object with the stored one."""
    ious = []
    for name, mask in got.items():
        stored = load_ids(FOLDER / name)
        ious.append(((mask == 1) & (stored == 1)).sum() / ((mask == 1) | (stored == 1)).sum())
    return min(ious)


def test_the_demos_masks() -> None:
    got = demo_masks()
    if os.environ.get("MVOS_UPDATE_GOLDEN"):
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name, mask in got.items():
            write_mask(FOLDER / name, mask)
    assert sorted(got) == sorted(p.name for p in FOLDER.iterdir())
    assert worst_iou(got) >= 0.99, "after new weights: MVOS_UPDATE_GOLDEN=1 accepts the change"


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [{"swap": True}, {"shift": 2}], ids=["red for blue", "2 pixels"])
def test_what_they_notice(wrong: dict[str, int]) -> None:
    assert worst_iou(demo_masks(**wrong)) < 0.99
