"""Where training clips come from: DAVIS videos and still images, read once, mapped from disk.

Decoding some seven thousand images takes half a minute and gigabytes. :func:`pack` keeps the result
in one file below the cache folder, which every later run maps: it starts at once, and processes
that train side by side share its pages.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.data.davis import Dataset
from engine.errors import InputError
from engine.files import output_errors
from engine.train.config import DEVELOPMENT, HELD_OUT

U8 = NDArray[np.uint8]


class Thing(NamedTuple):
    """One object in one frame: its id, its pixels, and how many of them lie at the border."""

    id: int
    area: int
    border: int


@dataclass(frozen=True)
class Source:
    """A video or, with one frame, a still image: frames [H, W, 3] uint8, masks [H, W] ids."""

    name: str
    frames: list[U8]
    masks: list[U8]

    @cached_property
    def things(self) -> list[list[Thing]]:
        """The objects of each frame."""
        return [list(things_in(mask)) for mask in self.masks]


def things_in(mask: U8) -> Iterable[Thing]:
    """The objects in a mask of ids [H, W]."""
    areas = np.bincount(mask.ravel(), minlength=256)
    edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    borders = np.bincount(edge, minlength=256)
    for k in np.flatnonzero(areas[1:]) + 1:
        yield Thing(int(k), int(areas[k]), int(borders[k]))


def load_davis(roots: Sequence[Path], exclude: Sequence[str]) -> list[Source]:
    """Read all sequences of folders laid out as DAVIS, but for those in ``exclude``.

    Raises InputError if there are none, one has frames without masks, or ``exclude`` names a
    sequence that is neither there nor one that is always excluded: it would be trained on misspelt.
    """
    sources, seen = [], set[str]()
    for dataset in map(Dataset.find, roots):
        names = dataset.sequences(None)
        seen |= set(names)
        for name in names:
            if name not in exclude:
                images, masks = dataset.frames(name)
                pairs = [read_pair(*paths) for paths in zip(images.paths, masks, strict=True)]
                sources.append(Source(name, [f for f, _ in pairs], [m for _, m in pairs]))
    unknown = sorted(set(exclude) - seen - {*DEVELOPMENT, *HELD_OUT})
    if unknown:
        raise InputError(
            f"no sequence '{unknown[0]}' to exclude; there are: {', '.join(sorted(seen))}"
        )
    if not sources:
        raise InputError("no sequences to train on but for excluded ones; leave some in")
    return sources


def read_pair(image: Path, mask: Path) -> tuple[U8, U8]:
    """Read a frame [H, W, 3] and its mask's ids [H, W]; InputError names the file at fault."""
    try:
        frame = np.asarray(Image.open(image).convert("RGB"))
        ids = np.asarray(Image.open(mask)).astype(np.uint8)
    except FileNotFoundError as error:
        raise InputError(f"'{error.filename}' is missing; each image needs its mask") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"'{image}' or '{mask}' is damaged ({error}); replace it") from error
    if ids.shape != frame.shape[:2]:
        raise InputError(f"'{mask}' is {ids.shape}, but its frame is {frame.shape[:2]}")
    return frame, ids


def load_stills(root: Path) -> list[Source]:
    """Read ``root/<set>/images`` and ``masks`` (ids) as one-frame sources.

    An image without an object is left out; raises InputError if there are no others.
    """
    sources = []
    for path in sorted(root.glob("*/images/*")):
        folder = path.parent.parent
        image, ids = read_pair(path, folder / "masks" / f"{path.stem}.png")
        if ids.any():
            sources.append(Source(f"{folder.name}/{path.stem}", [image], [ids]))
    if not sources:
        raise InputError(
            f"no still images with objects in '{root}'; they belong into "
            f"'{root / 'SET' / 'images'}', their masks into '{root / 'SET' / 'masks'}'"
        )
    return sources


def packed(
    davis: Sequence[Path], stills: Path, exclude: Sequence[str], folder: Path
) -> tuple[list[Source], list[Source]]:
    """Videos of ``davis`` and ``stills``, read once and mapped from ``folder`` from then on.

    The file's name is a hash of the paths, sizes and times of all images, so that a change in the
    data makes a new one. Raises InputError for the data, OutputError for the folder.
    """
    what = [list(exclude), [str(p) for p in davis], str(stills)]
    marks = hashlib.sha256(json.dumps(what).encode())
    for root in (*davis, stills):
        for path in sorted(root.rglob("*.*")):
            state = path.stat()
            marks.update(f"{path} {state.st_size} {state.st_mtime_ns}".encode())
    path = folder / f"clips-{marks.hexdigest()[:12]}.bin"
    if not (path.is_file() and path.with_suffix(".json").is_file()):
        pack(path, [*load_davis(davis, exclude), *load_stills(stills)])
    sources = mapped(path)
    return [s for s in sources if len(s.frames) > 1], [s for s in sources if len(s.frames) == 1]


def pack(path: Path, sources: list[Source]) -> None:
    """Write all frames and masks into ``path`` and, when they are complete, their index beside it.

    Raises OutputError.
    """
    index = []
    part = path.with_suffix(f".{os.getpid()}.part")  # processes that train together pack alike
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as out:
            for source in sources:
                shapes = [frame.shape[:2] for frame in source.frames]
                index.append({"name": source.name, "at": out.tell(), "shapes": shapes})
                for frame, mask in zip(source.frames, source.masks, strict=True):
                    out.write(frame.tobytes() + mask.tobytes())
        part.replace(path)
        part.write_text(json.dumps(index))
        part.replace(path.with_suffix(".json"))


def mapped(path: Path) -> list[Source]:
    """The sources of a packed file, their pixels read from it when they are looked at."""
    data = np.memmap(path, np.uint8, "r")
    sources = []
    for entry in json.loads(path.with_suffix(".json").read_text()):
        frames, masks, at = [], [], entry["at"]
        for height, width in entry["shapes"]:
            size = height * width
            frames.append(np.asarray(data[at : at + 3 * size]).reshape(height, width, 3))
            masks.append(np.asarray(data[at + 3 * size : at + 4 * size]).reshape(height, width))
            at += 4 * size
        sources.append(Source(entry["name"], frames, masks))
    return sources
