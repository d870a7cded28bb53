"""Sizes, resizing and padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.geometry import (
    MAX_ASPECT,
    STRIDE,
    Geometry,
    frame_to_network,
    masks_to_network,
    probabilities_to_source,
)

sides = st.integers(1, 5000)


@given(sides, sides, st.integers(16, 1080))
def test_plan(height, width, size):
    geometry = Geometry.fit(height, width, size)
    h, w = geometry.network
    assert geometry.source == (height, width)
    assert 1 <= h <= height and 1 <= w <= width, "never enlarged"
    assert min(h, w) <= size and max(h, w) <= MAX_ASPECT * size
    scale = min(1, size / min(height, width), MAX_ASPECT * size / max(height, width))
    assert abs(h - height * scale) <= 1 and abs(w - width * scale) <= 1, "the aspect is kept"
    for inner, outer in zip(geometry.network, geometry.padded, strict=True):
        assert outer % STRIDE == 0 and 0 <= outer - inner < STRIDE
    assert geometry.tokens == geometry.padded[0] * geometry.padded[1] // STRIDE**2


def test_davis_keeps_its_resolution():
    geometry = Geometry.fit(480, 854, 480)
    assert geometry.network == (480, 854)
    assert geometry.padded == (480, 864)
    assert geometry.tokens == 1620


def test_frame_of_the_networks_size_is_untouched(rng):
    frame = rng.integers(0, 256, (48, 50, 3), dtype=np.uint8)
    assert frame_to_network(frame, Geometry.fit(48, 50, 48)) is frame


@pytest.mark.parametrize(
    ("height", "width", "size"), [(97, 131, 48), (480, 640, 200), (40, 900, 64)]
)
def test_resize_is_antialiased_bilinear(rng, height, width, size):
    frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    geometry = Geometry.fit(height, width, size)
    got = frame_to_network(frame, geometry)
    planes = torch.from_numpy(frame).permute(2, 0, 1)[None].double()
    want = torch.nn.functional.interpolate(
        planes, geometry.network, mode="bilinear", antialias=True, align_corners=False
    )
    # Pillow works in fixed point and rounds between its two passes.
    assert np.abs(got - want[0].permute(1, 2, 0).numpy()).max() <= 1.5


def test_masks_are_split_by_id_and_padded_by_their_edge(rng):
    mask = rng.integers(0, 4, (33, 47)).astype(np.uint8) * 50
    geometry = Geometry.fit(33, 47, 480)
    planes = masks_to_network(mask, [150, 50], geometry)
    assert planes.shape == (2, 48, 48) and planes.dtype == np.float32
    assert np.array_equal(planes[0, :33, :47], mask == 150)
    assert np.array_equal(planes[1, :33, :47], mask == 50)
    assert (planes[:, 33:, :47] == planes[:, 32:33, :47]).all()
    assert (planes[:, :, 47:] == planes[:, :, 46:47]).all()


def test_shrunk_masks_keep_their_area(rng):
    mask = np.zeros((400, 600), np.uint8)
    mask[100:300, 200:500] = 9
    geometry = Geometry.fit(400, 600, 100)
    (plane,) = masks_to_network(mask, [9], geometry)
    h, w = geometry.network
    assert plane[:h, :w].mean() == pytest.approx((mask > 0).mean(), rel=0.01)


def test_probabilities_come_back_at_the_sources_size(rng):
    geometry = Geometry.fit(120, 200, 60)
    soft = rng.random((3, *geometry.padded), np.float32)
    back = probabilities_to_source(soft, geometry)
    assert back.shape == (3, 120, 200) and back.dtype == np.float32
    h, w = geometry.network
    want = torch.nn.functional.interpolate(
        torch.from_numpy(soft)[None, :, :h, :w], (120, 200), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(back, want[0].numpy(), atol=1e-5)
