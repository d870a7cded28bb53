"""Read and write mask files.

A mask is uint8 [H,W]: the id of each pixel's object, 0 for the background.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from engine.errors import InputError
from engine.files import write_atomic

Ids = NDArray[np.uint8]
Values = NDArray[np.int32]
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
    try:
        with Image.open(path) as image:
            lossy = image.format in ("JPEG", "MPO")
            raw = _values(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise InputError(f"mask '{path}' does not exist; check its path") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"mask '{path}' is not a readable image ({error}); save it as PNG"
        ) from None
    if lossy:
        raise InputError(f"mask '{path}' is a JPEG, whose compression blurs ids; {_HARD_EDGES}")
    if _antialiased(raw):
        raise InputError(f"mask '{path}' has antialiased or blurred edges; {_HARD_EDGES}")
    ids, note = _as_ids(raw, Path(path))
    notes = [f"mask '{path}': {text}" for text in (raw.note, note) if text]
    if size is not None and ids.shape != size:
        sizes = f"{ids.shape[1]}x{ids.shape[0]}", f"{size[1]}x{size[0]}"
        if not resize:
            raise InputError(
                f"mask '{path}' is {sizes[0]} but the video is {sizes[1]}; give a mask of that "
                "size, or add --resize-mask to scale this one"
            )
        ids = resize_ids(ids, size)
        notes.append(f"mask '{path}': scaled from {sizes[0]} to {sizes[1]}")
    if not ids.any():
        raise InputError(f"mask '{path}' is empty: it marks no object; give one a value above 0")
    return Mask(ids, tuple(notes))


def _values(image: Image.Image) -> _Raw:
    if image.mode == "P":
        flat = (image.getpalette("RGB") or [])[:768]
        palette = np.zeros((256, 3), np.int32)
        palette[: len(flat) // 3] = np.reshape(flat, (-1, 3))
        return _Raw(np.asarray(image).astype(np.int32), palette)
    if image.mode in ("1", "L") or image.mode.startswith(("I", "F")):
        return _Raw(np.rint(np.asarray(image).astype(np.float64)).astype(np.int32))
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


def load_ids(path: Path) -> Ids:
    """Read back a mask that `write_mask` wrote: its palette indices, uint8 [H,W], unquestioned."""
    try:
        with Image.open(path) as image:
            return np.array(image, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"'{path}' cannot be read back ({error}); run with --overwrite") from None


def write_mask(path: Path | str, ids: Ids, text: Mapping[str, str] | None = None) -> None:
    """Write ids uint8 [H,W] as a PNG with the DAVIS palette; raises OutputError.

    ``text`` goes into the PNG beside the pixels, by its keys.
    """
    image = Image.fromarray(ids)
    beside = PngInfo()
    for key, value in (text or {}).items():
        beside.add_text(key, value)
    image.putpalette(davis_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3, pnginfo=beside)
    write_atomic(Path(path), buffer.getvalue())
