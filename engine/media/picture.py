"""Pictures of a video as they are to be seen: RGB, turned as their display matrix says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av import VideoFrame

Image8 = NDArray[np.uint8]


def orientation(picture: VideoFrame) -> tuple[int, int, int, int]:
    """The signs (a, b, c, d) of a picture's display matrix: x' = a·x + c·y, y' = b·x + d·y."""
    side: Any = picture.side_data.get("DISPLAYMATRIX")
    if side is None:
        return (1, 0, 0, 1)
    m = np.frombuffer(bytes(side), np.int32)[[0, 1, 3, 4]].astype(np.float64)
    limit = 0.5 * float(np.abs(m).max())
    a, b, c, d = (int(np.sign(v)) if abs(v) > limit else 0 for v in m)
    # An oblique angle cannot be applied without resampling; players ignore it as well.
    return (a, b, c, d) if abs(a * d - b * c) == 1 else (1, 0, 0, 1)


def upright_size(picture: VideoFrame) -> tuple[int, int]:
    """(H, W) of the picture as it is to be seen."""
    turned = orientation(picture)[0] == 0
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def upright_image(picture: VideoFrame) -> Image8:
    """The picture as contiguous uint8 RGB [H,W,3], turned as its display matrix says."""
    # One thread: FFmpeg would start some for each picture, which costs five times the conversion.
    image = picture.reformat(format="rgb24", threads=1).to_ndarray()
    a, b, c, d = orientation(picture)
    if a == 0:
        image = image.transpose(1, 0, 2)
        a, d = c, b
    return np.ascontiguousarray(image[:: d or 1, :: a or 1], dtype=np.uint8)
