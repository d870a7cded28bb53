"""Preprocessing and mask head in Triton's interpreter against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.interpreted import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.mask_head.reference import mask_head_reference
from kernels.preprocess.reference import preprocess_reference

# The output's own rounding, and that of coordinates and sums in float32. A coordinate of a source
# of under 128 pixels errs by less than 128·2⁻²⁴·4, and the result changes by at most 2 a pixel.
COORDINATE = 128 * 4 * 2.0**-24
LIMIT = {"float32": 2 * COORDINATE, "float16": 2 * COORDINATE + 2.0**-11}


def check_preprocess(
    interpreter: Interpreter, frame: np.ndarray, height: int, width: int, dtype: str
) -> None:
    result = interpreter.preprocess(frame, height, width, dtype)
    wanted = preprocess_reference(torch.from_numpy(frame), height, width, torch.float64).numpy()
    assert result.shape == wanted.shape
    error = np.abs(result.astype(np.float64) - wanted).max()
    print(f"largest error {error:.2e}, limit {LIMIT[dtype]:.2e}")
    assert error <= LIMIT[dtype]  # a NaN would fail this as well


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((72, 128), (48, 85)),  # 720p to 480 at a tenth: downscaled, ragged, padded to 96
        ((108, 120), (24, 27)),  # more than four to one
        ((30, 17), (48, 27)),  # upscaled
        ((32, 48), (32, 48)),  # same size
        ((90, 31), (31, 90)),  # down in one direction, up in the other
        ((1, 1), (7, 5)),
        ((5, 7), (2, 2)),
    ],
)
def test_preprocess_agrees_with_pytorch(
    interpreter: Interpreter,
    rng: np.random.Generator,
    source: tuple[int, int],
    size: tuple[int, int],
    dtype: str,
) -> None:
    frame = rng.integers(0, 256, (*source, 3), dtype=np.uint8)
    check_preprocess(interpreter, frame, *size, dtype)


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    source=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
)
def test_preprocess_any_shape(
    interpreter: Interpreter, seed: int, source: tuple[int, int], size: tuple[int, int]
) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (*source, 3), dtype=np.uint8)
    check_preprocess(interpreter, frame, *size, "float32")


def test_preprocess_keeps_constants_and_pixels(
    interpreter: Interpreter, rng: np.random.Generator
) -> None:
    """White is exactly 1, black exactly −1, and without a resize a pixel keeps its value."""
    for level, wanted in ((255, 1.0), (0, -1.0)):
        frame = np.full((33, 47, 3), level, dtype=np.uint8)
        result = interpreter.preprocess(frame, 16, 20, "float32")
        # Sums of at most seven weights each way, twice, and a division.
        assert np.abs(result - wanted).max() <= 32 * 2.0**-24
    frame = rng.integers(0, 256, (16, 32, 3), dtype=np.uint8)
    result = interpreter.preprocess(frame, 16, 32, "float32")
    back = np.rint((result[0].transpose(1, 2, 0) + 1) * 127.5)
    assert np.array_equal(back.astype(np.uint8), frame)


def check_mask_head(
    interpreter: Interpreter,
    probabilities: np.ndarray,
    size: tuple[int, int],
    crop: tuple[int, int],
) -> float:
    """Compare the ids; returns the part of the pixels that could be compared."""
    channels = probabilities.shape[0]
    ids = np.arange(channels, dtype=np.uint8) * 7 % 251
    result = interpreter.mask_head(probabilities, ids, size, crop)
    tensor = torch.from_numpy(probabilities)
    wanted = mask_head_reference(tensor.double(), torch.from_numpy(ids), size, crop).numpy()
    # An argmax jumps: where two channels agree to rounding either may win, and only there.
    cropped = tensor[None, :, : crop[0], : crop[1]].double()
    scaled = F.interpolate(cropped, size, mode="bilinear", align_corners=False)[0]
    best = scaled.topk(min(2, channels), 0).values
    clear = (best[0] - best[-1] > 1e-4).numpy() if channels > 1 else np.ones(size, bool)
    assert np.array_equal(result[clear], wanted[clear])
    return float(clear.mean())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("shape", "crop", "size"),
    [
        ((2, 32, 48), (30, 41), (45, 61)),  # cropped, upscaled by 1.5
        ((5, 32, 32), (32, 32), (32, 32)),  # same size
        ((3, 48, 32), (47, 31), (20, 13)),  # downscaled: plain bilinear all the same
        ((1, 16, 16), (16, 16), (9, 9)),  # background alone
        ((9, 16, 16), (1, 16), (12, 40)),
    ],
)
def test_mask_head_agrees_with_pytorch(
    interpreter: Interpreter,
    rng: np.random.Generator,
    dtype: type,
    shape: tuple[int, int, int],
    crop: tuple[int, int],
    size: tuple[int, int],
) -> None:
    probabilities = rng.random(shape).astype(dtype)
    assert check_mask_head(interpreter, probabilities, size, crop) > 0.8


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 6),
    crop=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_mask_head_any_shape(
    interpreter: Interpreter,
    seed: int,
    channels: int,
    crop: tuple[int, int],
    size: tuple[int, int],
) -> None:
    probabilities = np.random.default_rng(seed).random((channels, 16, 16)).astype(np.float32)
    check_mask_head(interpreter, probabilities, size, crop)


def test_of_equal_channels_the_first_wins(
    interpreter: Interpreter, rng: np.random.Generator
) -> None:
    plane = rng.random((16, 16)).astype(np.float32)
    probabilities = np.stack([plane * np.float32(0.5), plane, plane, plane])
    ids = np.array([0, 5, 3, 9], dtype=np.uint8)
    result = interpreter.mask_head(probabilities, ids, (33, 47), (16, 16))
    assert (result == 5).all()
    reference = mask_head_reference(
        torch.from_numpy(probabilities), torch.from_numpy(ids), (33, 47), (16, 16)
    )
    assert (reference == 5).all()


def test_padding_never_shows(interpreter: Interpreter) -> None:
    """An object that covers nothing but the padding appears nowhere in the result."""
    probabilities = np.zeros((2, 32, 32), dtype=np.float32)
    probabilities[0, :23, :19] = 0.9
    probabilities[1, 23:, :] = probabilities[1, :, 19:] = 1.0
    ids = np.array([0, 1], dtype=np.uint8)
    assert not interpreter.mask_head(probabilities, ids, (64, 50), (23, 19)).any()
