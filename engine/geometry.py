"""The sizes of a video, and resizing between the source's resolution and the network's.

Pillow resizes on the host, so that every backend there sees the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STRIDE = 16
MAX_ASPECT = 4.0


@dataclass(frozen=True)
class Geometry:
    """The three sizes of a video, each (height, width) in pixels.

    ``source``: the frames as they come and the masks as they go. ``network``: what the network
    sees, of the same aspect. ``padded``: that, made up to multiples of 16 at the right and bottom.
    """

    source: tuple[int, int]
    network: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def fit(cls, height: int, width: int, size: int) -> Geometry:
        """Choose the network's resolution: short side ``size``, never larger than the source.

        A very long frame is shrunk further, to a long side of 4·``size``: the memory read's cost
        grows with the square of the area.
        """
        scale = min(1.0, size / min(height, width), MAX_ASPECT * size / max(height, width))
        h, w = (max(1, round(side * scale)) for side in (height, width))
        return cls((height, width), (h, w), (h + -h % STRIDE, w + -w % STRIDE))

    @property
    def tokens(self) -> int:
        """N, the positions of the 1/16 grid."""
        return (self.padded[0] // STRIDE) * (self.padded[1] // STRIDE)


def frame_to_network(frame: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Resize a frame [H0, W0, 3] to the network's size [h, w, 3]: bilinear, antialiased.

    Returns the frame itself, made contiguous, if the size is the same.
    """
    if geometry.network == geometry.source:
        return np.ascontiguousarray(frame)
    h, w = geometry.network
    return np.asarray(Image.fromarray(frame).resize((w, h), Image.Resampling.BILINEAR))


def masks_to_network(
    mask: NDArray[np.uint8], ids: Sequence[int], geometry: Geometry
) -> NDArray[np.float32]:
    """Split an id mask [H0, W0] into soft masks [K, H, W] in 0…1, in the order of ``ids``.

    Resized as the frame is, and padded by repeating the last row and column as the frame is.
    """
    h, w = geometry.network
    planes = np.empty((len(ids), h, w), np.float32)
    for plane, label in zip(planes, ids, strict=True):
        one = (mask == label).astype(np.float32)
        if geometry.network != geometry.source:
            one = np.asarray(Image.fromarray(one).resize((w, h), Image.Resampling.BILINEAR))
        plane[:] = one
    return pad_planes(planes, geometry)


def pad_planes(planes: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Pad [P, h, w] to [P, H, W] by repeating the last row and column, as the frame is."""
    (h, w), (height, width) = geometry.network, geometry.padded
    return np.pad(planes, ((0, 0), (0, height - h), (0, width - w)), mode="edge")


def probabilities_to_source(
    probabilities: NDArray[np.float32], geometry: Geometry
) -> NDArray[np.float32]:
    """Crop the padding off [P, H, W] and resize bilinearly to [P, H0, W0]."""
    h, w = geometry.network
    cropped = probabilities[:, :h, :w]
    if geometry.network == geometry.source:
        return cropped.copy()
    size = geometry.source[::-1]
    planes = [Image.fromarray(p).resize(size, Image.Resampling.BILINEAR) for p in cropped]
    return np.stack([np.asarray(p) for p in planes])
