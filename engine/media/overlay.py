"""Masks drawn over frames: a tint in each object's colour and a crisp contour."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.media.masks import davis_palette

Image8 = NDArray[np.uint8]


@functools.cache
def _colours() -> bytes:
    """A palette of 256·3 bytes: DAVIS's colours at full brightness."""
    colours = davis_palette().astype(np.float64)
    # DAVIS colours are dark (1 is #800000); at full brightness they show over any picture.
    colours[1:] *= 255 / colours[1:].max(axis=1, keepdims=True)
    return np.rint(colours).astype(np.uint8).tobytes()


def overlay(frame: Image8, ids: Image8, alpha: float = 0.5) -> Image8:
    """Draw the objects of ``ids`` uint8 [H,W] in colour over a copy of ``frame`` uint8 [H,W,3].

    alpha: opacity of the tint, 0 to 1; the contour, inside each object, is opaque.
    """
    result = frame.copy()
    box = Image.fromarray(ids).getbbox()
    if box is None:
        return result
    # Only the objects' bounding box costs anything.
    left, top, right, bottom = box
    place = slice(top, bottom), slice(left, right)
    opacity = (ids[place] > 0) * np.uint8(round(255 * alpha))
    opacity[_contour(ids, box, max(1, round(min(ids.shape) / 400)))] = 255
    colours = Image.fromarray(ids[place])
    colours.putpalette(_colours())
    # Pillow's paste blends without arrays in between: a third of NumPy's time.
    drawn = Image.fromarray(result[place])
    drawn.paste(colours.convert("RGB"), mask=Image.fromarray(opacity))
    result[place] = np.asarray(drawn)
    return result


def _contour(ids: Image8, box: tuple[int, int, int, int], width: int) -> NDArray[np.bool_]:
    """The pixels of objects that lie within ``width`` of another id.

    box: (left, top, right, bottom) around all objects. Returns bool [bottom - top, right - left].
    """
    left, top, right, bottom = box
    before = min(left, width), min(top, width)
    ids = ids[top - before[1] : bottom + width, left - before[0] : right + width]
    edge = np.zeros(ids.shape, bool)
    for k in range(1, width + 1):
        across, down = ids[:, k:] != ids[:, :-k], ids[k:] != ids[:-k]
        edge[:, k:] |= across
        edge[:, :-k] |= across
        edge[k:] |= down
        edge[:-k] |= down
    edge &= ids > 0
    return edge[before[1] :, before[0] :][: bottom - top, : right - left]
