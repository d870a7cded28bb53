"""Layers that clips are composed of: cut-outs of objects, thin occluders, haze."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.train.augment import U8, Rng, Warp


@dataclass(frozen=True)
class Layer:
    """A moving picture with an opacity: images [H, W, 3] and alphas [H, W] in 0…255, one a frame.

    ``label``: the object's number; 0 hides what is below and is not tracked; None tints what is
    below and leaves its labels.
    """

    images: list[U8]
    alphas: list[U8]
    label: int | None


def paste(frames: list[U8], labels: list[U8], layer: Layer) -> tuple[list[U8], list[U8]]:
    """Frames [H, W, 3] and labels [H, W] with ``layer`` over them."""
    over = []
    for frame, image, alpha in zip(frames, layer.images, layer.alphas, strict=True):
        share = cv2.merge([alpha, alpha, alpha])
        above = cv2.multiply(image, share, scale=1 / 255)
        below = cv2.multiply(frame, cv2.bitwise_not(share), scale=1 / 255)
        over.append(np.asarray(cv2.add(above, below), np.uint8))
    if layer.label is None:
        return over, labels
    kept = [
        np.where(alpha > 127, np.uint8(layer.label), label)
        for label, alpha in zip(labels, layer.alphas, strict=True)
    ]
    return over, kept


def holes(rng: Rng, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``mask`` [H, W] with thin gaps or round holes in it, as between limbs, spokes and leaves."""
    ys, xs = np.nonzero(mask)
    scale = np.sqrt(len(ys))
    cut = np.zeros(mask.shape, np.uint8)
    for _ in range(int(rng.integers(1, 5))):
        at = rng.integers(len(ys))
        centre = (int(xs[at]), int(ys[at]))
        if rng.random() < 0.5:
            axes = np.maximum(1, scale * rng.uniform(0.03, 0.15, 2)).astype(int).tolist()
            cv2.ellipse(cut, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        else:
            reach, turn = scale * rng.uniform(0.2, 0.8), rng.uniform(0, 2 * np.pi)
            end = (int(centre[0] + reach * np.cos(turn)), int(centre[1] + reach * np.sin(turn)))
            cv2.line(cut, centre, end, 1, int(max(1, scale * rng.uniform(0.01, 0.06))))
    rest = mask & (cut == 0)
    return rest if rest.sum() > 0.4 * len(ys) else mask


def lattice(rng: Rng, frames: int, size: tuple[int, int]) -> Layer:
    """Thin occluders that pass over the clip: poles, wires, a fence, twigs or leaves."""
    height, width = size
    big = (2 * height, 2 * width)
    alpha = np.zeros(big, np.uint8)
    thick = float(np.exp(rng.uniform(np.log(1.0), np.log(8.0))))
    kind = rng.integers(4)
    if kind == 0:  # poles and wires, each of its own direction
        for _ in range(int(rng.integers(1, 6))):
            middle, turn = rng.uniform(0.2, 0.8, 2) * big[::-1], rng.uniform(0, np.pi)
            reach = np.array([np.cos(turn), np.sin(turn)]) * (height + width)
            start, end = np.rint([middle - reach, middle + reach]).astype(int).tolist()
            cv2.line(
                alpha, start, end, 255, max(1, round(thick * rng.uniform(0.5, 2))), cv2.LINE_AA
            )
    elif kind == 1:  # a fence: parallel lines, crossed by others in half of the cases
        step = int(rng.uniform(4, 14) * thick) + 4
        for at in range(0, big[1], step):
            cv2.line(alpha, (at, 0), (at, big[0]), 255, max(1, round(thick)), cv2.LINE_AA)
        if rng.random() < 0.5:
            for at in range(0, big[0], int(step * rng.uniform(0.7, 2))):
                cv2.line(alpha, (0, at), (big[1], at), 255, max(1, round(thick)), cv2.LINE_AA)
    else:  # twigs, with leaves in half of the cases
        for _ in range(int(rng.integers(2, 7))):
            root = rng.uniform(0.1, 0.9, 2) * big[::-1]
            steps = rng.normal(0, 0.08 * width, (12, 2)) + rng.normal(0, 0.1 * width, 2)
            points = np.rint(root + np.cumsum(steps, 0)).astype(np.int32)
            cv2.polylines(alpha, [points[:, None]], False, 255, max(1, round(thick)), cv2.LINE_AA)
            if kind == 3:
                for x, y in points.tolist():
                    axes = np.maximum(2, rng.uniform(0.5, 3, 2) * thick + 2).astype(int).tolist()
                    cv2.ellipse(alpha, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
    colour = rng.integers(0, 256, 3).astype(np.int16)
    grain = cv2.resize(rng.integers(-40, 41, (height // 8, width // 8, 3)).astype(np.int16),
                       (width, height), interpolation=cv2.INTER_LINEAR)  # fmt: skip
    texture = np.clip(np.asarray(grain) + colour, 0, 255).astype(np.uint8)
    turn, spin = rng.normal(0, 0.5), rng.normal(0, 0.02)
    centre = np.array([big[1], big[0]]) / 2 + rng.uniform(-0.2, 0.2, 2) * (width, height)
    speed = rng.normal(0, 0.12, 2) * (width, height)
    alphas = []
    for _ in range(frames):
        cos, sin = np.cos(turn), np.sin(turn)
        matrix = np.array([[cos, -sin, 0], [sin, cos, 0]])
        matrix[:, 2] = centre - matrix[:, :2] @ (width / 2, height / 2)
        alphas.append(Warp(matrix, None, 1.0, size).image(alpha, cv2.BORDER_CONSTANT))
        turn, centre = turn + spin, centre + speed
    return Layer([texture] * frames, alphas, 0)


def haze(rng: Rng, frames: list[U8], labels: list[U8]) -> Layer:
    """Smoke, spray, dust or a shadow: a drifting, half transparent cloud near the object."""
    height, width = frames[0].shape[:2]
    ys, xs = np.nonzero(labels[0])
    near = len(ys) and rng.random() < 0.8
    at = rng.integers(len(ys)) if near else 0
    x, y = (xs[at], ys[at]) if near else (rng.uniform(0, width), rng.uniform(0, height))
    radius = np.array([width, height]) * np.exp(rng.uniform(np.log(0.12), np.log(0.5), 2))
    cells = int(rng.integers(3, 9))
    cloud = cv2.resize(rng.random((cells, 2 * cells), np.float32), (2 * width, height))
    own = frames[0][ys, xs].mean(0) if len(ys) else np.full(3, 200.0)
    light = np.full(3, rng.uniform(170, 255))
    colour = light if rng.random() < 0.5 else own if rng.random() < 0.6 else rng.uniform(0, 60, 3)
    image = np.broadcast_to(np.asarray(colour, np.uint8), frames[0].shape)
    peak = rng.uniform(0.3, 0.75)
    speed, grow = rng.normal(0, 0.06, 2) * (width, height), np.exp(rng.normal(0, 0.1))
    v, u = np.mgrid[:height, :width].astype(np.float32)
    alphas = []
    for t in range(len(frames)):
        far = np.hypot((u - x) / radius[0], (v - y) / radius[1])
        shift = int(t * width / 20)
        alpha = peak * np.clip(1.5 - far, 0, 1) * np.clip(2 * cloud[:, shift : shift + width], 0, 1)
        alphas.append((255 * alpha).astype(np.uint8))
        x, y, radius = x + speed[0], y + speed[1], radius * grow
    return Layer([np.asarray(image)] * len(frames), alphas, None)
