"""Read and write mask files.

A mask is uint8 [H,W]: the id of each pixel's object, 0 for the background.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from engine.errors import InputError
from engine.files import write_atomic
from engine.media.images import FORMATS, UnreadableImage, open_image, upright_size

Ids = NDArray[np.uint8]
Values = NDArray[np.int32]
_FORMATS = (*FORMATS, "GIF")
_MOST_PIXELS = 1 << 26  # of a mask that is scaled
_HARD_EDGES = (
    "save it as PNG with hard edges: no antialiasing, no soft brush, nearest-neighbour scaling"
)


class Mask(NamedTuple):
    """A mask read from a file, and what was made of it where that is not obvious."""

    ids: Ids
    notes: tuple[str, ...]


class _Raw(NamedTuple):
    """Values [H,W] as stored; where they number colours, these [n,3], and whether ids are free."""

    values: Values
    colours: Values | None = None
    mapped: bool = False  # values only number the colours: ids are still to be chosen
    note: str = ""


@functools.cache
def davis_palette() -> NDArray[np.uint8]:
    """The palette of DAVIS and PASCAL VOC, uint8 [256,3]: an id's bits spread over r, g, b."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(
                np.uint8
            )
    palette.flags.writeable = False
    return palette


def read_mask(path: Path | str, size: tuple[int, int] | None = None, resize: bool = False) -> Mask:
    """Read a mask image of any usual kind as ids.

    Palette and grey values are ids as they are, but a mask of only 0 and 255 is object 1. Colours
    become ids by the DAVIS palette, or else in order of appearance. size: the (H, W) needed;
    resize: scale to it (nearest neighbour) instead of refusing another one.
    Raises InputError for an unreadable, JPEG, antialiased, empty or wrongly sized mask, and for
    more than 255 objects.
    """
    path = Path(path)
    try:
        with open_image(path, _FORMATS) as image:
            # All that the header tells comes before the decoding, which may take gigabytes.
            if image.format in ("JPEG", "MPO"):
                raise InputError(
                    f"mask '{path}' is a JPEG, whose compression blurs ids; {_HARD_EDGES}"
                )
            _check_size(path, upright_size(image), size, resize)
            raw = _values(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise InputError(f"mask '{path}' does not exist; check its path") from None
    except (OSError, UnreadableImage) as error:
        raise InputError(
            f"mask '{path}' is not a readable image ({error}); save it as PNG"
        ) from None
    if _antialiased(raw):
        raise InputError(f"mask '{path}' has antialiased or blurred edges; {_HARD_EDGES}")
    ids, note = _as_ids(raw, path)
    notes = [f"mask '{path}': {text}" for text in (raw.note, note) if text]
    if size is not None and ids.shape != size:
        notes.append(f"mask '{path}': scaled from {_text(ids.shape)} to {_text(size)}")
        ids = resize_ids(ids, size)
    if not ids.any():
        raise InputError(f"mask '{path}' is empty: it marks no object; give one a value above 0")
    return Mask(ids, tuple(notes))


def _check_size(
    path: Path, found: tuple[int, int], wanted: tuple[int, int] | None, resize: bool
) -> None:
    """Raise InputError for a mask of another size than ``wanted``, or of too many pixels."""
    if wanted not in (None, found) and not resize:
        raise InputError(
            f"mask '{path}' is {_text(found)} but the video is {_text(wanted)}; give a mask of "
            "that size, or add --resize-mask to scale this one"
        )
    if wanted != found and math.prod(found) > _MOST_PIXELS:
        raise InputError(
            f"mask '{path}' is {_text(found)}, too large; scale it to the video's size"
        )


def _text(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"


def _values(image: Image.Image) -> _Raw:
    if image.mode == "P":
        flat = (image.getpalette("RGB") or [])[:768]
        palette = np.zeros((256, 3), np.int32)
        palette[: len(flat) // 3] = np.reshape(flat, (-1, 3))
        values: Values = np.asarray(image).astype(np.int32)
        black = ~palette[np.unique(values)].any(axis=1)
        # Index 0 is the background, unless its colour says otherwise and another's is black.
        if not palette[0].any() or not black.any():
            return _Raw(values, palette)
    if image.mode in ("1", "L"):
        return _Raw(np.asarray(image).astype(np.int32))
    if image.mode.startswith(("I", "F")):
        stored = np.asarray(image).astype(np.float64)
        # NaN compares as false.
        if not (np.abs(stored) <= np.iinfo(np.int32).max).all():
            raise UnreadableImage("it holds values that are no numbers, or beyond 32 bits")
        return _Raw(np.rint(stored).astype(np.int32))
    rgba = np.asarray(image.convert("RGBA")).astype(np.int32)
    alpha = rgba[:, :, 3:]
    pixels = (rgba[:, :, :3] * alpha + 127) // 255
    if not pixels.any() and np.ptp(alpha) > 0:
        return _Raw(alpha[:, :, 0], note="all black, so its opacity is taken as the mask")
    if (pixels == pixels[:, :, :1]).all():
        return _Raw(pixels[:, :, 0])
    keys, numbers = np.unique(pixels @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True)
    colours = np.stack([keys >> 16, keys >> 8 & 255, keys & 255], axis=1).astype(np.int32)
    return _Raw(numbers.reshape(pixels.shape[:2]).astype(np.int32), colours, mapped=True)


def _antialiased(raw: _Raw) -> bool:
    """Whether several values occur only along edges, between a darker and a lighter neighbour.

    An object has an inside (pixels whose 3x3 neighbours all share its value) or, if it is tiny,
    stands out from what surrounds it; blurring makes values that do neither.
    """
    keys, index = np.unique(raw.values, return_inverse=True)
    if len(keys) < 5:
        return False
    index = index.reshape(raw.values.shape)
    light = raw.values
    if raw.colours is not None:
        light = (raw.colours @ np.array([299, 587, 114], np.int32))[raw.values]
    height, width = light.shape
    padded = np.pad(light, 1, mode="edge")
    near = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    low, high = functools.reduce(np.minimum, near), functools.reduce(np.maximum, near)
    total = np.bincount(index.ravel(), minlength=len(keys))
    inner = np.bincount(index[low == high], minlength=len(keys))
    suspects = (inner < 0.05 * total)[index]
    between = (low < light) & (light < high) & suspects
    return len(np.unique(index[suspects])) >= 3 and between.sum() > 0.5 * suspects.sum()


def _as_ids(raw: _Raw, path: Path) -> tuple[Ids, str]:
    """Return ids [H,W] for the raw values, and a note where the ids are other numbers."""
    if raw.mapped and raw.colours is not None:
        return _colours_as_ids(raw.values, raw.colours, path)
    keys = np.unique(raw.values)
    keys = keys[keys != 0]
    if len(keys) > 255:
        raise _too_many(path, len(keys))
    if raw.colours is None and len(keys) == 1 and keys[0] in (255, 65535):
        return (raw.values != 0).astype(np.uint8), f"white ({keys[0]}) is taken as object 1"
    if len(keys) and (keys[0] < 0 or keys[-1] > 255):
        ids = np.searchsorted(np.concatenate([[0], keys]), raw.values).astype(np.uint8)
        ids[raw.values == 0] = 0
        return ids, f"values up to {keys[-1]} are numbered 1 to {len(keys)} in rising order"
    return raw.values.astype(np.uint8), ""


def _colours_as_ids(numbers: Values, colours: Values, path: Path) -> tuple[Ids, str]:
    """Ids for coloured pixels; ``numbers`` [H,W] index ``colours`` [n,3], sorted by colour."""
    if len(colours) > 256:
        raise _too_many(path, len(colours) - 1)
    palette = {tuple(colour): i for i, colour in enumerate(davis_palette().tolist())}
    known = [palette.get(tuple(colour), -1) for colour in colours.tolist()]
    table = np.zeros(len(colours), np.uint8)
    if min(known) >= 0:
        table[:] = known
        how = "colours are taken as those of the DAVIS palette"
    else:
        dark, bright = (tuple(colours[k].tolist()) for k in (0, -1))
        background = 0 if dark == (0, 0, 0) else len(colours) - 1 if bright == (255,) * 3 else -1
        first = np.unique(numbers, return_index=True)[1]
        order = [int(k) for k in np.argsort(first, kind="stable") if k != background]
        if len(order) > 255:
            raise _too_many(path, len(order))
        table[order] = np.arange(1, len(order) + 1)
        ground = ("white" if background else "black") if background >= 0 else "no colour"
        how = f"colours are numbered in order of appearance, {ground} is background"
    named = zip(colours.tolist(), table, strict=True)
    shown = [f"#{r:02x}{g:02x}{b:02x} = {i}" for (r, g, b), i in named if i]
    return table[numbers], f"{how}: {', '.join(shown[:6])}{', …' if len(shown) > 6 else ''}"


def _too_many(path: Path, count: int) -> InputError:
    return InputError(
        f"mask '{path}' has {count} objects (different values), more than the 255 that fit; "
        "keep those to be followed"
    )


def resize_ids(ids: Ids, size: tuple[int, int]) -> Ids:
    """Scale ids to ``size`` (H, W) by the nearest neighbour."""
    rows, columns = ((np.arange(n) + 0.5) * m / n for n, m in zip(size, ids.shape, strict=True))
    return ids[np.ix_(rows.astype(np.intp), columns.astype(np.intp))]


def load_ids(path: Path, size: tuple[int, int] | None = None) -> Ids:
    """Read back a mask that `write_mask` wrote: its palette indices, uint8 [H,W], unquestioned.

    Raises InputError if it cannot be read, or is not of ``size`` (H, W).
    """
    try:
        with open_image(path, ("PNG",)) as image:
            if size not in (None, (image.height, image.width)):
                raise UnreadableImage(f"it is {image.width}x{image.height}")
            if size is not None and image.mode not in ("P", "L"):
                raise UnreadableImage(f"its mode is {image.mode}")
            return np.array(image, dtype=np.uint8)
    except (OSError, UnreadableImage) as error:
        raise InputError(
            f"'{path}' is missing or no mask of this run ({error}); start anew with --overwrite"
        ) from None


def write_mask(
    path: Path | str, ids: Ids, text: Mapping[str, str] | None = None, sync: bool = True
) -> None:
    """Write ids uint8 [H,W] as a PNG with the DAVIS palette; raises OutputError.

    ``text`` goes into the PNG beside the pixels, by its keys. sync: as for `write_atomic`.
    """
    image = Image.fromarray(ids)
    beside = PngInfo()
    for key, value in (text or {}).items():
        beside.add_text(key, value)
    image.putpalette(davis_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3, pnginfo=beside)
    write_atomic(Path(path), buffer.getvalue(), sync)
