"""Folders laid out as DAVIS: frames in JPEGImages, masks in Annotations, a folder a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError
from engine.media.images import ImageFolder
from engine.media.masks import load_ids

RESOLUTIONS = ("480p", "1080p", "Full-Resolution")


@dataclass(frozen=True)
class Dataset:
    """The two folders of a DAVIS layout; each holds a folder for each sequence."""

    images: Path
    masks: Path

    @classmethod
    def find(cls, root: Path) -> Dataset:
        """Find JPEGImages and Annotations below ``root``, with or without a resolution's folder.

        Raises InputError if there are none.
        """
        images, masks = root / "JPEGImages", root / "Annotations"
        if not images.is_dir() or not masks.is_dir():
            raise InputError(
                f"'{root}' is not laid out as DAVIS: JPEGImages or Annotations is missing in it"
            )
        for name in RESOLUTIONS:
            if (images / name).is_dir() and (masks / name).is_dir():
                return cls(images / name, masks / name)
        return cls(images, masks)

    def sequences(self, wanted: Sequence[str] | None) -> list[str]:
        """Return all sequences, or those ``wanted``; raise InputError for one that is missing."""
        have = sorted(
            p.name for p in self.images.iterdir() if p.is_dir() and (self.masks / p.name).is_dir()
        )
        if not have:
            raise InputError(f"no sequences with frames and masks in '{self.images}'")
        missing = [name for name in wanted or [] if name not in have]
        if missing:
            raise InputError(
                f"no sequence {', '.join(missing)} in '{self.images}'; there are: {', '.join(have)}"
            )
        return list(wanted) if wanted else have

    def frames(self, name: str) -> tuple[ImageFolder, list[Path]]:
        """Return a sequence's frames and the paths of their masks, in order.

        Raises InputError if a frame has no mask or there are fewer than three, since the first and
        the last are not counted.
        """
        images = ImageFolder(self.images / name)
        masks = [self.masks / name / f"{p.stem}.png" for p in images.paths]
        for mask in masks:
            if not mask.is_file():
                raise InputError(f"'{mask}' is missing; every frame of {name} needs its mask")
        if len(masks) < 3:
            raise InputError(f"sequence {name} has {len(masks)} frames; at least 3 are needed")
        return images, masks


def load_truth(path: Path) -> NDArray[np.uint8]:
    """Read an annotation's ids, [H, W]; one of 0 and 255 alone, as DAVIS-2016 has, is object 1.

    Raises InputError if it is no such image.
    """
    try:
        ids = load_ids(path)
    except InputError as error:
        raise InputError(f"'{path}' is not a readable image; replace it") from error
    if ids.ndim != 2:
        raise InputError(f"'{path}' is a colour image; masks hold ids, as grey or palette values")
    return (ids > 0).astype(np.uint8) if ids.max(initial=0) == 255 else ids
