"""Fixtures that many tests share: the demo clip, small frames, both backends."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from engine.data.demo import CLIP, MASK
from engine.media.masks import load_ids, resize_ids
from engine.media.open import open_source

U8 = NDArray[np.uint8]


def pytest_configure(config: pytest.Config) -> None:
    """With ``-n`` each worker computes in one thread: they share the cores."""
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip ``gpu`` tests where there is no GPU, and say so."""
    if not any("gpu" in item.keywords for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU on this machine"))


@pytest.fixture(scope="session")
def clip() -> tuple[list[U8], U8]:
    """Sixty real frames [180, 320, 3] of the demo clip and the mask [180, 320] of the first."""
    size = (320, 180)
    source = open_source(CLIP)
    frames = [
        np.asarray(Image.fromarray(f.image).resize(size, Image.Resampling.BOX))
        for f in source.frames(end=60)
    ]
    source.close()
    return frames, resize_ids(load_ids(Path(MASK)), size[::-1])


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh numbers in every run; a failure shows the seed, and MVOS_SEED repeats it."""
    seed = int(os.environ.get("MVOS_SEED") or secrets.randbits(32))
    print(f"to repeat: MVOS_SEED={seed}")
    return np.random.default_rng(seed)
