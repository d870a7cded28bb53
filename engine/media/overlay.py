"""Masks drawn over frames: a tint in each object's colour and a crisp contour."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from engine.masks import davis_palette

Image8 = NDArray[np.uint8]


@functools.lru_cache(maxsize=8)
def _tables(alpha: float) -> tuple[Image8, Image8]:
    """Blended values, uint8 [3, 256·256] at ``id·256 + value``, and pure colours [256,3]."""
    colours = davis_palette().astype(np.float64)
    # DAVIS colours are dark (1 is #800000); at full brightness they show over any picture.
    colours[1:] *= 255 / colours[1:].max(axis=1, keepdims=True)
    values = np.arange(256.0)
    blend = (1 - alpha) * values + alpha * colours.T[:, :, None]
    blend[:, 0] = values
    return np.rint(blend).astype(np.uint8).reshape(3, -1), np.rint(colours).astype(np.uint8)


def overlay(frame: Image8, ids: Image8, alpha: float = 0.5) -> Image8:
    """A copy of ``frame`` uint8 [H,W,3] with the objects of ``ids`` uint8 [H,W] shown in colour.

    alpha: opacity of the tint, 0 to 1; the contour, inside each object, is opaque.
    """
    result = frame.copy()
    rows, columns = np.flatnonzero(ids.any(axis=1)), np.flatnonzero(ids.any(axis=0))
    if not len(rows):
        return result
    # Only the objects' bounding box costs anything.
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    blended, colours = _tables(alpha)
    inner = ids[box]
    place = inner.astype(np.uint16) << 8
    for channel in range(3):
        view = result[(*box, channel)]
        view[:] = blended[channel][place | view]
    edge = _contour(ids, max(1, round(min(ids.shape) / 400)))[box]
    result[box][edge] = colours[inner[edge]]
    return result


def _contour(ids: Image8, width: int) -> NDArray[np.bool_]:
    """The pixels of objects that lie within ``width`` of another id, bool [H,W]."""
    edge = np.zeros(ids.shape, bool)
    for k in range(1, width + 1):
        across, down = ids[:, k:] != ids[:, :-k], ids[k:] != ids[:-k]
        edge[:, k:] |= across
        edge[:, :-k] |= across
        edge[k:] |= down
        edge[:-k] |= down
    return edge & (ids > 0)
