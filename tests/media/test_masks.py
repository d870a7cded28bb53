"""Mask files of every kind in, palette PNG out, and the overlay."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from engine.errors import InputError, OutputError
from engine.media.masks import davis_palette, load_ids, read_mask, resize_ids, write_mask
from engine.media.overlay import _contour, overlay

SIZE = (60, 80)


def shapes(mode="L", fills=(1, 2, 3), scale=1):
    """Three overlapping shapes as a Pillow image, background 0."""
    image = Image.new(mode, (SIZE[1] * scale, SIZE[0] * scale))
    draw = ImageDraw.Draw(image)
    draw.ellipse([5 * scale, 5 * scale, 35 * scale, 40 * scale], fill=fills[0])
    draw.rectangle([30 * scale, 20 * scale, 60 * scale, 50 * scale], fill=fills[1])
    draw.polygon([(50 * scale, 5 * scale), (78 * scale, 30 * scale), (45 * scale, 55 * scale)],
                 fill=fills[2])  # fmt: skip
    return image


IDS = np.asarray(shapes())


@pytest.fixture
def read(tmp_path):
    def run(image, **options):
        path = tmp_path / "mask.png"
        image.save(path)
        return read_mask(path, **options)

    return run


def test_palette():
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128),
             8: (64, 0, 0), 21: (128, 64, 128), 255: (224, 224, 192)}  # fmt: skip
    for index, colour in known.items():
        assert tuple(davis_palette()[index]) == colour
    assert len(np.unique(davis_palette(), axis=0)) == 256


def test_written_masks_read_back(tmp_path):
    ids = np.random.default_rng(0).integers(0, 256, (33, 47), dtype=np.uint8)
    write_mask(tmp_path / "m.png", ids)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        assert image.getpalette() == davis_palette().ravel().tolist()
    np.testing.assert_array_equal(load_ids(tmp_path / "m.png"), ids)
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]
    with pytest.raises(OutputError, match="cannot write"):
        write_mask(tmp_path / "none" / "m.png", ids)


def test_palette_indices_are_ids_whatever_the_colours(read):
    image = Image.fromarray(IDS * 7)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    mask = read(image)
    np.testing.assert_array_equal(mask.ids, IDS * 7)
    assert mask.notes == ()


def test_grey_values_are_ids(read):
    assert read(Image.fromarray(IDS)).notes == ()
    np.testing.assert_array_equal(read(Image.fromarray(IDS * 85)).ids, IDS * 85)


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "LA", "16"])
def test_binary_masks_are_object_1(read, mode):
    image = Image.fromarray((IDS == 1).astype(np.uint8) * 255)
    if mode == "16":
        image = Image.fromarray((IDS == 1).astype(np.uint16) * 65535)
    elif mode != "L":
        image = image.convert(mode)
    mask = read(image)
    np.testing.assert_array_equal(mask.ids, IDS == 1)
    assert mode == "1" or "object 1" in mask.notes[0]


def test_cut_out_object_counts_as_its_opacity(read):
    pixels = np.zeros((*SIZE, 4), np.uint8)
    pixels[IDS == 2, 3] = 255
    mask = read(Image.fromarray(pixels))
    np.testing.assert_array_equal(mask.ids, IDS == 2)
    assert "opacity" in mask.notes[0]


def test_davis_colours_keep_their_ids(read):
    mask = read(Image.fromarray(davis_palette()[IDS * 5]))
    np.testing.assert_array_equal(mask.ids, IDS * 5)
    assert "DAVIS" in mask.notes[0]


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255)])
def test_other_colours_are_numbered_in_order_of_appearance(read, background):
    colours = np.array([background, (255, 0, 0), (0, 0, 255), (10, 240, 30)], np.uint8)
    mask = read(Image.fromarray(colours[IDS]))
    first = {v: np.argmax(IDS.ravel() == v) for v in (1, 2, 3)}
    numbers = {v: 1 + sorted(first, key=first.get).index(v) for v in first}
    np.testing.assert_array_equal(mask.ids, np.vectorize({0: 0, **numbers}.get)(IDS))
    assert f"#ff0000 = {numbers[1]}" in mask.notes[0]


def test_16_bit_instances_are_numbered(read):
    mask = read(Image.fromarray(IDS.astype(np.uint16) * 1000))
    np.testing.assert_array_equal(mask.ids, IDS)
    assert "3000" in mask.notes[0]


def test_exif_turned_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(IDS).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").ids, IDS)


def _smooth(mode, fills):
    return shapes(mode, fills, scale=4).resize(SIZE[::-1], Image.Resampling.LANCZOS)


def _from_jpeg(tmp_path):
    shapes(fills=(255, 255, 255)).save(tmp_path / "m.jpg", quality=85)
    return Image.open(tmp_path / "m.jpg")


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: _smooth("L", (255, 255, 255)),
        lambda folder: _smooth("L", (80, 160, 240)),
        lambda folder: _smooth("RGB", ((128, 0, 0), (0, 128, 0), (128, 128, 0))),
        lambda folder: _smooth("RGBA", ((255, 0, 0, 255),) * 3),
        lambda folder: _smooth("RGB", ((255, 0, 0),) * 3).quantize(32),
        lambda folder: shapes(fills=(255,) * 3).filter(ImageFilter.GaussianBlur(1)),
        lambda folder: shapes(fills=(255,) * 3).filter(ImageFilter.GaussianBlur(8)),
        lambda folder: shapes(fills=(255,) * 3).resize((200, 150), Image.Resampling.BILINEAR),
        _from_jpeg,
    ],
    ids=["grey", "greys", "rgb", "rgba", "palette", "blur", "wide blur", "enlarged", "ex-jpeg"],
)
def test_soft_edges_are_refused(read, tmp_path, make):
    with pytest.raises(InputError, match="antialiased or blurred.*PNG with hard edges"):
        read(make(tmp_path))


def _scattered(count, side):
    """``count`` squares on background, ids in shuffled order."""
    columns = 20
    ids = np.zeros((-(-count // columns) * (side + 2), columns * (side + 2)), np.uint8)
    for k, value in enumerate(np.random.default_rng(0).permutation(count) + 1):
        y, x = k // columns * (side + 2), k % columns * (side + 2)
        ids[y : y + side, x : x + side] = value
    return ids


@pytest.mark.parametrize(
    "ids",
    [
        _scattered(255, 4),
        _scattered(200, 1),
        _scattered(200, 2),
        np.random.default_rng(1).permutation(255).astype(np.uint8).reshape(15, 17).repeat(5, 0)
        .repeat(5, 1),
        np.repeat(np.arange(1, 201, dtype=np.uint8)[None], 50, 0).repeat(3, 1),
        np.diag(np.full(50, 9, np.uint8)) + np.diag(np.full(49, 4, np.uint8), 1),
        np.array([[1]], np.uint8),
        np.array([[0, 1, 2, 3, 4, 5, 6]], np.uint8).repeat(9, 1),
    ],
    ids=["255 squares", "pixels", "2x2", "tiles", "stripes", "lines", "1x1", "one row"],
)  # fmt: skip
@pytest.mark.parametrize("palette", [False, True])
def test_many_or_thin_objects_are_not_mistaken_for_soft_edges(read, ids, palette):
    image = Image.fromarray(ids)
    if palette:
        image.putpalette(davis_palette().tobytes())
    np.testing.assert_array_equal(read(image).ids, ids)


@pytest.mark.parametrize("mode", ["16", "RGB"])
def test_more_than_255_objects(read, mode):
    values = np.random.default_rng(0).permutation(300).reshape(15, 20).repeat(4, 0).repeat(4, 1)
    if mode == "16":
        image = Image.fromarray(values.astype(np.uint16))
    else:
        image = Image.fromarray(np.stack([values % 16 * 16, values // 16 * 13, values % 7 * 30],
                                         axis=2).astype(np.uint8))  # fmt: skip
    with pytest.raises(InputError, match="299 objects.*255"):
        read(image)


def test_size_and_resize(read):
    with pytest.raises(InputError, match="80x60 but the video is 160x120.*--resize-mask"):
        read(Image.fromarray(IDS), size=(120, 160))
    mask = read(Image.fromarray(IDS), size=(120, 160), resize=True)
    np.testing.assert_array_equal(mask.ids, IDS.repeat(2, 0).repeat(2, 1))
    assert "scaled" in mask.notes[-1]
    np.testing.assert_array_equal(resize_ids(IDS.repeat(3, 0).repeat(3, 1), SIZE), IDS)


def test_empty_mask(read):
    with pytest.raises(InputError, match="marks no object"):
        read(Image.new("L", (8, 8)))


# Overlay


def test_overlay_colours_objects_and_leaves_the_rest():
    frame = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    before = frame.copy()
    drawn = overlay(frame, IDS)
    np.testing.assert_array_equal(frame, before)
    assert drawn.dtype == np.uint8 and drawn.flags.c_contiguous
    np.testing.assert_array_equal(drawn[IDS == 0], frame[IDS == 0])
    colours = {1: (255, 0, 0), 2: (0, 255, 0), 3: (255, 255, 0)}
    for value, colour in colours.items():
        inside = value == IDS
        blend = np.rint(0.5 * frame[inside] + 0.5 * np.array(colour))
        tinted = (np.abs(drawn[inside] - blend) <= 1).all(axis=1)
        contour = (drawn[inside] == colour).all(axis=1)
        assert (tinted | contour).all() and 0.02 < contour.mean() < 0.3 and tinted.mean() > 0.6


def test_overlay_contour_is_one_pixel_inside_the_object():
    ids = np.zeros((20, 20), np.uint8)
    ids[5:15, 5:15] = 1
    red = (overlay(np.zeros((20, 20, 3), np.uint8), ids) == (255, 0, 0)).all(axis=2)
    expected = ids.astype(bool)
    expected[6:14, 6:14] = False
    np.testing.assert_array_equal(red, expected)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (3, 500)])
def test_overlay_of_odd_sizes(size, alpha):
    frame = np.full((*size, 3), 100, np.uint8)
    np.testing.assert_array_equal(overlay(frame, np.zeros(size, np.uint8)), frame)
    assert overlay(frame, np.full(size, 255, np.uint8), alpha).shape == frame.shape


@pytest.mark.parametrize("width", [1, 2, 3])
def test_contour_in_the_bounding_box_is_that_of_the_whole_mask(rng, width):
    for _ in range(20):
        ids = np.zeros((14, 17), np.uint8)
        for label in (1, 2):
            top, left = rng.integers(0, 10), rng.integers(0, 12)
            ids[top : top + rng.integers(1, 9), left : left + rng.integers(1, 9)] = label
        padded = np.pad(ids, width, mode="edge")
        near = np.zeros(ids.shape, bool)
        for k in range(-width, width + 1):
            for y, x in ((width + k, width), (width, width + k)):
                near |= padded[y : y + 14, x : x + 17] != ids
        left, top, right, bottom = box = Image.fromarray(ids).getbbox()
        expected = (near & (ids > 0))[top:bottom, left:right]
        np.testing.assert_array_equal(_contour(ids, box, width), expected)
