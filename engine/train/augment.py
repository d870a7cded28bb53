"""Geometric and colour augmentation of clips: smooth random motion, elastic bending, jitter."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Warp:
    """Where a crop's pixels come from.

    ``matrix`` [2, 3] maps a crop's pixel (x, y, 1) to the source's; ``bend`` [H, W, 2] is added, in
    source pixels; ``zoom`` is the step between neighbours, so that more than 1 shrinks.
    """

    matrix: F64
    bend: F32 | None
    zoom: float
    size: tuple[int, int]  # height, width of the crop

    def image(self, frame: U8, border: int = cv2.BORDER_REFLECT_101) -> U8:
        """Sample frame [H0, W0, C] or [H0, W0]; box-filtered where it shrinks."""
        matrix, bend, zoom = self.matrix, self.bend, self.zoom
        while zoom > 1.5:
            frame = np.asarray(
                cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8
            )
            matrix = 0.5 * matrix
            matrix[:, 2] -= 0.25
            bend, zoom = None if bend is None else 0.5 * bend, 0.5 * zoom
        height, width = self.size
        if bend is None:
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            return np.asarray(
                cv2.warpAffine(frame, matrix, (width, height), flags=flags, borderMode=border),
                np.uint8,
            )
        u, v = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
        (a, b, c), (d, e, f) = matrix.astype(np.float32)
        x, y = (a * u + c) + b * v + bend[..., 0], (d * u + f) + e * v + bend[..., 1]
        return np.asarray(cv2.remap(frame, x, y, cv2.INTER_LINEAR, borderMode=border), np.uint8)

    def mask(self, mask: NDArray[np.bool_], border: int = cv2.BORDER_REFLECT_101) -> U8:
        """Sample a mask [H0, W0] the same way, as alpha in 0…255."""
        return self.image(mask.view(np.uint8) * np.uint8(255), border)


def random_walk(
    rng: Rng,
    frames: int,
    target: tuple[float, float],
    zoom: float,
    motion: float,
    source: tuple[int, ...],
    size: tuple[int, int],
    approach: float = 0.0,
    keep: bool = True,
) -> list[Warp]:
    """Crops of ``size`` (height, width) that drift over a source (height, width) near ``target``.

    Position, scale, rotation, shear and, in half of the walks, an elastic field take random walks
    whose steps are proportional to ``motion``; ``target`` (x, y) lies inside the first crop.
    ``approach``: natural logarithm by which the zoom changes from the first to the last frame.
    ``keep``: crops stay within the source, as far as they fit; a cut-out may be anywhere.
    """
    height, width = size
    shape = np.array([width * zoom, height * zoom])
    extent = np.array([source[1], source[0]], float)
    centre = np.asarray(target, float) + rng.uniform(-0.35, 0.35, 2) * shape
    low, high = np.minimum(shape, extent) / 2, extent - np.minimum(shape, extent) / 2
    if keep:
        centre = np.clip(centre, low, high)
    motion *= 3 / max(frames, 3)  # a longer clip is no wider
    velocity = rng.normal(0, 0.06, 2) * motion
    angle, shear, log_zoom = rng.normal(0, 0.12), rng.normal(0, 0.06), np.log(zoom)
    spin, flip = rng.normal(0, 0.08) * motion, -1.0 if rng.random() < 0.5 else 1.0
    bends, field = rng.random() < 0.5, np.zeros((4, 6, 2), np.float32)
    walk = []
    for t in range(frames):
        if t:
            velocity = velocity + rng.normal(0, 0.02, 2) * motion
            centre = centre + velocity * shape
            if keep:
                centre = np.clip(centre, low - 0.15 * shape, high + 0.15 * shape)
            angle += spin + rng.normal(0, 0.04) * motion
            shear += rng.normal(0, 0.03) * motion
            log_zoom += rng.normal(0, 0.06) * motion + approach / (frames - 1)
            field = field + rng.normal(0, 0.012 * motion, field.shape).astype(np.float32)
        cos, sin = np.cos(angle), np.sin(angle)
        z = float(np.exp(log_zoom))
        turn = z * np.array([[cos, shear * cos - sin], [sin, shear * sin + cos]])
        turn[:, 0] *= flip
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        matrix = np.column_stack([turn, centre - turn @ middle])
        bend = None
        if t and bends:
            wide = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
            bend = np.asarray(wide, np.float32) * shape.astype(np.float32)
        walk.append(Warp(matrix, bend, z, size))
    return walk


def jitter_colours(rng: Rng, frames: list[U8], strength: float = 1.0) -> list[U8]:
    """Vary light, contrast, saturation and tint of frames [H, W, 3], a little of it by frame.

    The result is one affine map of the colours, rounded to 8 bits as in a video.
    """
    gain = np.exp(rng.normal(0, 0.15, 3) * 0.5 + rng.normal(0, 0.2) * strength)
    bias, saturation = rng.normal(0, 12) * strength, np.exp(rng.normal(0, 0.3) * strength)
    if rng.random() < 0.05 * strength:
        saturation = 0.0
    mix = saturation * np.eye(3) + (1 - saturation) / 3
    out = []
    for frame in frames:
        colour = (gain * np.exp(rng.normal(0, 0.04)))[:, None] * mix
        # About mid-grey, so that a gain changes contrast rather than light alone.
        offset = 127.5 * (1 - colour.sum(1)) + bias + rng.normal(0, 4)
        matrix = np.column_stack([colour, offset])
        out.append(np.asarray(cv2.transform(frame, matrix), np.uint8))
    return out


def degrade(rng: Rng, frames: list[U8]) -> list[U8]:
    """Blur, motion blur, noise or compression, each in some clips: what cameras do."""
    kernel = None
    if rng.random() < 0.15:
        sigma = rng.uniform(0.5, 1.5)
        line = cv2.getGaussianKernel(7, sigma)
        kernel = line @ line.T
    elif rng.random() < 0.12:
        length, angle = int(rng.integers(3, 12)), rng.uniform(0, np.pi)
        kernel = np.zeros((length, length))
        half = (length - 1) / 2
        ends = half * (1 + np.array([[-1], [1]]) * np.array([np.cos(angle), np.sin(angle)]))
        (x0, y0), (x1, y1) = np.rint(ends).astype(int).tolist()
        cv2.line(kernel, (x0, y0), (x1, y1), 1.0)
        kernel /= kernel.sum()
    if kernel is not None:
        frames = [np.asarray(cv2.filter2D(f, -1, kernel), np.uint8) for f in frames]
    if rng.random() < 0.15:
        spread = rng.uniform(1, 6)
        grain = rng.normal(0, spread, (*frames[0].shape[:2], 1)).astype(np.int16)
        rolls = rng.integers(0, 1000, len(frames))
        frames = [
            np.clip(f + np.roll(grain, int(r)), 0, 255).astype(np.uint8)
            for f, r in zip(frames, rolls, strict=True)
        ]
    if rng.random() < 0.15:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 80))]
        frames = [
            np.asarray(cv2.imdecode(cv2.imencode(".jpg", f, quality)[1], cv2.IMREAD_COLOR))
            for f in frames
        ]
    return frames
