"""What is known of each object in each frame: the one record that every export is made from.

It is read from ``masks/`` alone: the pixels give box, area and centroid, and a text in the PNG (key
`KEY`) what the pixels cannot tell: the frame's time, each object's confidence, and whether it was
lost. A mask without that text is good, too; what is not known is None.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.errors import InputError
from engine.media.images import UnreadableImage, open_image
from engine.media.rle import coco_counts

KEY = "mobilevos"
_NUMBERED = re.compile(r"\d{5,}\.png")


@dataclass(frozen=True)
class Record:
    """One object in one frame.

    box: (left, top, width, height) in pixels; zeros where the object has no pixel.
    area: in pixels.
    centroid: (x, y), the mean of its pixels' centres; the pixel at the top left has its centre at
    (0.5, 0.5). None where the object has no pixel.
    confidence: Σp²/Σp in 0…1, see `engine.confidence`. lost: whether the frame lost the object.
    mask: bool [height, width], the object inside its box.
    """

    object: int
    box: tuple[int, int, int, int]
    area: int
    centroid: tuple[float, float] | None
    confidence: float | None
    lost: bool | None
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class FrameRecords:
    """The objects of one frame, by rising id.

    frame: its number in the source. time: in seconds from the source's first frame.
    size: (H, W).
    """

    frame: int
    time: float | None
    size: tuple[int, int]
    objects: tuple[Record, ...]

    def rle(self, record: Record) -> dict[str, Any]:
        """The mask of one of the ``objects`` in the image as COCO's compressed RLE."""
        left, top, *_ = record.box
        return {
            "size": list(self.size),
            "counts": coco_counts(record.mask, left, top, self.size),
        }


def describe(time: float, confidence: Mapping[int, float], lost: tuple[int, ...]) -> dict[str, str]:
    """The text that a frame's mask carries, for `engine.media.masks.write_mask`."""
    objects = {
        str(label): {"confidence": round(value, 4), "lost": label in lost}
        for label, value in sorted(confidence.items())
    }
    return {KEY: json.dumps({"time": round(time, 6), "objects": objects})}


def mask_files(folder: Path) -> list[Path]:
    """The masks NNNNN.png in ``folder`` by rising frame; InputError if there is none."""
    try:
        found = [p for p in folder.iterdir() if _NUMBERED.fullmatch(p.name)]
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"'{folder}' cannot be read: {reason}; give the --out of a run") from None
    if not found:
        raise InputError(f"'{folder}' holds no masks NNNNN.png; give the --out of a run")
    return sorted(found, key=lambda path: int(path.stem))


def read_records(results: Path | str) -> Iterator[FrameRecords]:
    """What ``segment`` found, frame by frame; ``results`` is its ``--out``.

    Raises InputError if it holds no masks or a damaged one.
    """
    for path in mask_files(Path(results) / "masks"):
        yield read_frame(path)


def read_frame(path: Path, blank_lost: bool = False) -> FrameRecords:
    """The records of one mask NNNNN.png. Raises InputError if it cannot be read.

    blank_lost: leave out the pixels of objects that the frame lost, which are often not theirs.
    """
    try:
        with open_image(path, ("PNG",)) as image:
            if image.mode not in ("P", "L"):
                raise UnreadableImage(f"its mode is {image.mode}, not palette or grey")
            ids = np.array(image, dtype=np.uint8)
            about = json.loads(getattr(image, "text", {}).get(KEY, "{}"))
            objects = {int(label): told for label, told in about.get("objects", {}).items()}
            if blank_lost:
                ids[
                    np.isin(ids, [label for label, told in objects.items() if told.get("lost")])
                ] = 0
            return FrameRecords(
                int(path.stem),
                about.get("time"),
                (image.height, image.width),
                tuple(_records(ids, objects)),
            )
    except (OSError, UnreadableImage) as error:
        raise InputError(
            f"mask '{path}' cannot be read ({error}); run segment again with --overwrite"
        ) from None


def _records(ids: NDArray[np.uint8], told: Mapping[int, Mapping[str, Any]]) -> Iterator[Record]:
    present = np.flatnonzero(np.bincount(ids.ravel(), minlength=256)[1:]) + 1
    for label in sorted({*present.tolist(), *told}):
        about = told.get(label, {})
        confidence, lost = about.get("confidence"), about.get("lost")
        mask = Image.fromarray(ids == label)
        place = mask.getbbox()
        if place is None:
            nothing = np.zeros((0, 0), bool)
            yield Record(label, (0, 0, 0, 0), 0, None, confidence, lost, nothing)
            continue
        left, top, right, bottom = place
        crop = np.asarray(mask.crop(place))
        rows, columns = crop.sum(1), crop.sum(0)
        area = int(rows.sum())
        x = left + 0.5 + float(columns @ np.arange(len(columns))) / area
        y = top + 0.5 + float(rows @ np.arange(len(rows))) / area
        box = (left, top, right - left, bottom - top)
        yield Record(label, box, area, (round(x, 2), round(y, 2)), confidence, lost, crop)
