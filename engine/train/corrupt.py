"""Errors put into the masks that the memory keeps, so that the network learns to get over them.

A clip is too short for a network to drift as far as in a long video: there, a wrong part of the
last mask is read back, believed, and grows. So parts are taken from remembered masks (an object
that was half hidden and comes out again) and foreign regions are added (a look-alike, a piece of
the background that was taken along), while the loss still asks for the true mask.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

F32 = NDArray[np.float32]
Rng = np.random.Generator


def corrupt_masks(rng: Rng, masks: Tensor, frames: Tensor, share: float) -> Tensor:
    """Corrupt each object's mask with probability ``share``: half lose a part, half gain one.

    masks [B, K, H, W] in 0…1, frames [B, 3, H, W] in −1…1; the result has no more than 1 in sum
    over K, and no gradient where it was changed.
    """
    edits = np.ones((2, *masks.shape), np.float32)  # a factor, and a floor
    edits[1] = 0
    soft = masks.detach().float().cpu().numpy()
    for b, k in np.ndindex(*masks.shape[:2]):
        if rng.random() >= share:
            continue
        ys, xs = np.nonzero(soft[b, k] > 0.5)
        if len(ys) < 50:
            continue
        if rng.random() < 0.5:
            edits[0, b, k] = 1 - part_of(rng, ys, xs, soft.shape[-2:])
        else:
            blob = beside(rng, ys, xs, soft.shape[-2:])
            if rng.random() < 0.6:
                blob = regions_in(rng, blob, frames[b], soft[b, k] > 0.5)
            edits[1, b, k] = blob * rng.uniform(0.6, 1.0)
    keep, floor = torch.from_numpy(edits).to(masks.device)
    spoilt = torch.maximum(masks * keep, floor)
    return spoilt / spoilt.sum(1, keepdim=True).clamp_min(1)


def part_of(rng: Rng, ys: NDArray[np.intp], xs: NDArray[np.intp], size: tuple[int, ...]) -> F32:
    """A region [H, W] of 0 and 1 that cuts 15…85 % off the object with pixels ``ys``, ``xs``.

    It has a straight, wavy or ragged edge of any direction.
    """
    angle = rng.uniform(0, 2 * np.pi)
    v, u = np.mgrid[: size[0], : size[1]].astype(np.float32)
    distance = np.cos(angle) * u + np.sin(angle) * v
    wave = smooth_noise(rng, size) * rng.uniform(0, 0.3) * np.sqrt(len(ys))
    distance += wave
    cut = np.quantile(distance[ys, xs], rng.uniform(0.15, 0.85))
    return np.asarray(distance > cut, np.float32)


def beside(rng: Rng, ys: NDArray[np.intp], xs: NDArray[np.intp], size: tuple[int, ...]) -> F32:
    """A blob [H, W] of 0 and 1, of 10…100 % of the object's area, at its edge or anywhere."""
    height, width = size
    area = len(ys) * np.exp(rng.uniform(np.log(0.1), np.log(1.0)))
    if rng.random() < 0.75:
        at = rng.integers(len(ys))
        reach = np.sqrt(len(ys)) * rng.uniform(0.3, 1.2)
        turn = rng.uniform(0, 2 * np.pi)
        y, x = ys[at] + reach * np.sin(turn), xs[at] + reach * np.cos(turn)
    else:
        y, x = rng.uniform(0, height), rng.uniform(0, width)
    v, u = np.mgrid[:height, :width].astype(np.float32)
    aspect = np.exp(rng.normal(0, 0.4))
    radius = np.sqrt(area / np.pi)
    distance = np.hypot((u - x) / aspect, (v - y) * aspect) / radius
    return np.asarray(distance + 0.35 * smooth_noise(rng, size) < 1, np.float32)


def regions_in(rng: Rng, blob: F32, frame: Tensor, own: NDArray[np.bool_]) -> F32:
    """Regions [H, W] of even colour in ``frame`` [3, H, W], from seeds in ``blob`` off the object.

    What a network takes along by mistake is rarely a round patch: it has the image's own edges.
    """
    picture = ((frame.float().permute(1, 2, 0).cpu().numpy() + 1) * 127.5).astype(np.uint8)
    picture = np.asarray(cv2.blur(picture, (3, 3)), np.uint8)
    ys, xs = np.nonzero((blob > 0) & ~own)
    found = np.zeros((blob.shape[0] + 2, blob.shape[1] + 2), np.uint8)
    if not len(ys):
        return blob
    reach = np.sqrt(max(1.0, float(own.sum()))) * rng.uniform(0.3, 1.0)
    for _ in range(int(rng.integers(1, 5))):
        at = rng.integers(len(ys))
        y, x = int(ys[at]), int(xs[at])
        part = np.zeros_like(found)
        part[1:-1, 1:-1] = own  # the flood stops at the object
        v, u = np.mgrid[: blob.shape[0], : blob.shape[1]]
        part[1:-1, 1:-1] |= (np.hypot(v - y, u - x) > reach).astype(np.uint8)
        step = (float(rng.uniform(2, 9)),) * 3
        flags = 4 | cv2.FLOODFILL_MASK_ONLY | (2 << 8)
        cv2.floodFill(picture, part, (x, y), 0, step, step, flags)
        found |= (part == 2).astype(np.uint8)
    return found[1:-1, 1:-1].astype(np.float32)


def smooth_noise(rng: Rng, size: tuple[int, ...]) -> F32:
    """Noise [H, W] of unit variance or so, a few bumps wide."""
    cells = int(rng.integers(4, 13))
    coarse = rng.standard_normal((cells, cells), np.float32)
    return np.asarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC), np.float32)
