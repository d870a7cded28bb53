"""Two-object sequences made of DAVIS sequences of one object: ``python bench/composites.py``.

A composite ``a+b`` is sequence a with the object of b pasted over it, frame by frame, where it
stands in b; so b's object hides parts of a's, never the other way round. It is as long as the
shorter of the two. Writes a folder laid out as DAVIS, ids 1 (a) and 2 (b), for

    python -m engine evaluate --davis OUT
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from engine.data.davis import Dataset, load_truth
from engine.errors import InputError, run
from engine.files import make_folder
from engine.media.masks import write_mask

U8 = NDArray[np.uint8]


def paste(frame: U8, mask: U8, other: U8, other_mask: U8) -> tuple[U8, U8]:
    """Lay the object of ``other`` [H, W, 3] over ``frame`` [H, W, 3]; returns frame and ids.

    Masks [H, W] are 0 where the object is not. The cut is softened by a pixel, as a camera would.

    Raises InputError if the two are not of one size.
    """
    if frame.shape != other.shape:
        raise InputError(
            f"frames of {frame.shape[1]}x{frame.shape[0]} and {other.shape[1]}x{other.shape[0]} "
            "cannot be pasted together; choose sequences of one size"
        )
    inside = Image.fromarray((other_mask > 0).astype(np.uint8) * 255)
    alpha = np.asarray(inside.filter(ImageFilter.GaussianBlur(1)), np.float32)[:, :, None] / 255
    mixed = np.rint(frame * (1 - alpha) + other * alpha).astype(np.uint8)
    ids = np.where(other_mask > 0, 2, mask > 0).astype(np.uint8)
    return mixed, ids


def compose(dataset: Dataset, a: str, b: str, out: Path) -> int:
    """Write the composite a+b below ``out``; returns the number of its frames."""
    (frames_a, masks_a), (frames_b, masks_b) = dataset.frames(a), dataset.frames(b)
    images, masks = (out / kind / "480p" / f"{a}+{b}" for kind in ("JPEGImages", "Annotations"))
    for folder in (images, masks):
        make_folder(folder)
    count = min(len(masks_a), len(masks_b))
    pairs = zip(frames_a.frames(), masks_a, frames_b.frames(), masks_b, strict=False)
    for i, (frame_a, mask_a, frame_b, mask_b) in enumerate(pairs):
        frame, ids = paste(frame_a.image, load_truth(mask_a), frame_b.image, load_truth(mask_b))
        Image.fromarray(frame).save(images / f"{i:05d}.jpg", quality=95)
        write_mask(masks / f"{i:05d}.png", ids)
    return count


def main(argv: list[str] | None = None) -> int:
    """Make the composites that are asked for."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("pairs", nargs="+", metavar="A+B", help="names of two sequences")
    p.add_argument("--davis", type=Path, required=True, metavar="ROOT", help="laid out as DAVIS")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = p.parse_args(argv)

    def work() -> None:
        dataset = Dataset.find(options.davis)
        for pair in options.pairs:
            a, plus, b = pair.partition("+")
            if not plus:
                raise InputError(f"'{pair}' is not a pair; write two sequences as A+B")
            dataset.sequences([a, b])
            print(f"{pair}: {compose(dataset, a, b, options.out)} frames")

    return run(work)


if __name__ == "__main__":
    raise SystemExit(main())
