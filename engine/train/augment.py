"""Geometric and colour augmentation of clips: smooth random motion, elastic bending, jitter."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Rng = np.random.Generator


@dataclass(frozen=True)
class Warp:
    """Where a crop's pixels come from: x, y [H, W] in source pixels; ``zoom`` is their step."""

    x: F32
    y: F32
    zoom: float

    def image(self, frame: U8) -> U8:
        """Sample frame [H0, W0, 3], mirrored at its borders; box-filtered where it shrinks."""
        x, y = self.x, self.y
        if self.zoom > 1.5:
            half = cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            frame, x, y = np.asarray(half, np.uint8), x * 0.5 - 0.25, y * 0.5 - 0.25
        crop = cv2.remap(frame, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return np.asarray(crop, np.uint8)

    def mask(self, mask: NDArray[np.bool_]) -> U8:
        """Sample a mask [H0, W0] the same way; 0 or 1."""
        soft = cv2.remap(
            mask.astype(np.uint8) * 255, self.x, self.y, cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )  # fmt: skip
        return (soft > 127).astype(np.uint8)


def random_walk(
    rng: Rng,
    frames: int,
    target: tuple[float, float],
    zoom: float,
    motion: float,
    source: tuple[int, ...],
    size: tuple[int, int],
) -> list[Warp]:
    """Crops of ``size`` (height, width) that drift over a source (height, width) near ``target``.

    Position, scale, rotation, shear and an elastic field each take a random walk whose steps are
    proportional to ``motion``; ``target`` (x, y) is somewhere inside the first crop.
    """
    height, width = size
    shape = np.array([width * zoom, height * zoom])
    extent = np.array([source[1], source[0]], float)
    centre = np.asarray(target, float) + rng.uniform(-0.35, 0.35, 2) * shape
    low, high = np.minimum(shape, extent) / 2, extent - np.minimum(shape, extent) / 2
    centre = np.clip(centre, low, high)
    motion *= 3 / max(frames, 3)  # a longer clip is no wider
    velocity = rng.normal(0, 0.06, 2) * motion
    angle, shear, log_zoom = rng.normal(0, 0.12), rng.normal(0, 0.06), np.log(zoom)
    spin, flip = rng.normal(0, 0.08) * motion, -1.0 if rng.random() < 0.5 else 1.0
    field = np.zeros((4, 6, 2), np.float32)

    v, u = np.mgrid[:height, :width].astype(np.float32)
    u, v = (u - (width - 1) / 2) * flip, v - (height - 1) / 2
    walk = []
    for t in range(frames):
        if t:
            velocity = velocity + rng.normal(0, 0.02, 2) * motion
            centre = np.clip(centre + velocity * shape, low - 0.15 * shape, high + 0.15 * shape)
            angle += spin + rng.normal(0, 0.04) * motion
            shear += rng.normal(0, 0.03) * motion
            log_zoom += rng.normal(0, 0.06) * motion
            field = field + rng.normal(0, 0.012 * motion, field.shape).astype(np.float32)
        cos, sin = np.cos(angle), np.sin(angle)
        z = float(np.exp(log_zoom))
        x = z * (cos * u + (shear * cos - sin) * v) + centre[0]
        y = z * (sin * u + (shear * sin + cos) * v) + centre[1]
        if t:
            bend = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
            x, y = x + bend[..., 0] * shape[0], y + bend[..., 1] * shape[1]
        walk.append(Warp(x.astype(np.float32), y.astype(np.float32), z))
    return walk


def jitter_colours(rng: Rng, frames: list[U8]) -> list[F32]:
    """Vary light, contrast, saturation, tint and sharpness of a clip, a little of it by frame.

    Frames [H, W, 3] uint8 in, float32 in −1…1 out.
    """
    gain = np.exp(rng.normal(0, 0.15, 3) * 0.5 + rng.normal(0, 0.2))
    bias, saturation = rng.normal(0, 0.1), np.exp(rng.normal(0, 0.3))
    if rng.random() < 0.05:
        saturation = 0.0
    blur = rng.uniform(0.5, 1.5) if rng.random() < 0.15 else 0.0
    noise = rng.uniform(0, 0.04) if rng.random() < 0.2 else 0.0
    out = []
    for frame in frames:
        x = frame.astype(np.float32) / 127.5 - 1
        if blur:
            x = np.asarray(cv2.GaussianBlur(x, (0, 0), blur), np.float32)
        grey = x.mean(2, keepdims=True)
        x = (grey + (x - grey) * saturation) * (gain * np.exp(rng.normal(0, 0.04))).astype(x.dtype)
        x += bias + rng.normal(0, 0.03)
        if noise:
            x += rng.standard_normal(x.shape, np.float32) * noise
        out.append(np.clip(x, -1, 1).astype(np.float32))
    return out
