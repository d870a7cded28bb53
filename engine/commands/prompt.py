"""A first mask from a rectangle, by GrabCut (OpenCV, extra ``prompt``)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError, MissingExtraError

Box = tuple[int, int, int, int]
_LONG_SIDE = 960  # GrabCut takes minutes on 4K and finds nothing more there


def clip_box(box: Box, size: tuple[int, int]) -> Box:
    """``box`` (x, y, w, h) cut to a frame of ``size`` (H, W); InputError if nothing is left."""
    x, y, w, h = box
    height, width = size
    if w <= 0 or h <= 0:
        raise InputError(f"--box {x},{y},{w},{h} is empty: give x,y,w,h with w and h above 0")
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        raise InputError(f"--box {x},{y},{w},{h} lies outside the frame of {width}x{height}")
    return left, top, right - left, bottom - top


def mask_from_box(frame: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Ids uint8 [H,W] (1 = the object) of what GrabCut finds in ``box`` of ``frame`` [H,W,3].

    Deterministic. Raises InputError for a bad box or where nothing stands out in it, and
    MissingExtraError without OpenCV.
    """
    height, width = frame.shape[:2]
    x, y, w, h = clip_box(box, (height, width))
    try:
        import cv2
    except ImportError:
        raise MissingExtraError("--box", "cv2", "prompt") from None
    scale = min(1.0, _LONG_SIDE / max(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(frame[:, :, ::-1], small, interpolation=cv2.INTER_AREA)
    left, right = int(x * scale), max(int(x * scale) + 1, round((x + w) * scale))
    top, bottom = int(y * scale), max(int(y * scale) + 1, round((y + h) * scale))
    marks = np.full(image.shape[:2], cv2.GC_BGD, np.uint8)
    marks[top:bottom, left:right] = cv2.GC_PR_FGD
    if (marks == cv2.GC_PR_FGD).all():
        raise InputError("--box covers the whole frame; leave some background around the object")
    cv2.setRNGSeed(0)
    try:
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(image, marks, (0, 0, 0, 0), *models, 5, cv2.GC_INIT_WITH_MASK)
    except cv2.error as error:
        raise InputError(f"--box: GrabCut failed here ({error.err}); give a --mask") from None
    found = np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    ids = cv2.resize(found, (width, height), interpolation=cv2.INTER_NEAREST)
    if not ids.any():
        raise InputError("--box: nothing stands out in it; draw it wider, or give a --mask")
    return np.asarray(ids, dtype=np.uint8)
