"""Records of objects and the exports made of them, read back by what other tools read with."""

from __future__ import annotations

import base64
import csv
import io
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from engine.errors import InputError
from engine.media.exports import FORMATS
from engine.media.masks import write_mask
from engine.media.outline import loops, polygon
from engine.media.record import describe, read_frame, read_records
from engine.media.rle import coco_counts, run_lengths

SIZE = (40, 60)
bits = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9))


def fill(corners, size):
    """Pixels whose centre lies in the polygon, by the even-odd rule and by that of windings."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    crossings, windings = np.zeros(size, int), np.zeros(size, int)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        level = (min(y0, y1) < y) & (y < max(y0, y1))
        right = x0 + (y - y0) * (x1 - x0) / (y1 - y0) > x
        crossings += level & right
        windings += (level & right) * int(np.sign(y1 - y0))
    return crossings % 2 == 1, windings != 0


@settings(max_examples=100, deadline=None)
@given(bits)
def test_filling_the_polygon_gives_the_mask(mask):
    for filled in fill(polygon(mask), mask.shape):
        np.testing.assert_array_equal(filled, mask)


@settings(max_examples=100, deadline=None)
@given(bits)
def test_borders_are_corners_of_closed_loops(mask):
    area = 0.0
    for border in loops(mask):
        steps = np.roll(border, -1, axis=0) - border
        assert len(border) >= 4 and (np.count_nonzero(steps, axis=1) == 1).all()
        # Corners only: across and down take turns.
        assert (np.diff(np.flatnonzero(steps[:, 0])) == 2).all()
        x, y = border.T
        area += (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
    assert area == mask.sum()


def test_pieces_that_touch_at_a_corner_have_borders_of_their_own():
    assert len(loops(np.eye(3, dtype=bool))) == 3
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    assert sorted(len(border) for border in loops(ring)) == [4, 4]


@settings(max_examples=100, deadline=None)
@given(bits, st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))
def test_rle_is_that_of_pycocotools(crop, left, top, right, bottom):
    mask = pytest.importorskip("pycocotools.mask")
    whole = np.pad(crop, ((top, bottom), (left, right)))
    want = mask.encode(np.asfortranarray(whole, np.uint8))["counts"].decode()
    assert coco_counts(crop, left, top, whole.shape) == want


def test_runs_of_a_large_mask(rng):
    mask = pytest.importorskip("pycocotools.mask")
    for whole in (rng.random((300, 400)) < 0.5, np.ones((700, 900), bool)):
        want = mask.encode(np.asfortranarray(whole, np.uint8))["counts"].decode()
        assert coco_counts(whole, 0, 0, whole.shape) == want


@pytest.fixture
def results(tmp_path):
    """Three frames: objects 1 (a ring) and 5 (two pieces); 5 lost and gone in frame 7; none."""
    (tmp_path / "masks").mkdir()
    ids = np.zeros(SIZE, np.uint8)
    ids[10:20, 30:50] = 1
    ids[14:16, 35:40] = 0
    ids[30:, :10] = 5
    ids[5, 5] = 5
    text = describe(0.12, {1: 0.98765, 5: 0.5}, ())
    write_mask(tmp_path / "masks" / "00003.png", ids, text)
    ids = np.where(ids == 5, 0, ids)
    write_mask(tmp_path / "masks" / "00007.png", ids, describe(0.28, {1: 0.9, 5: 0.25}, (5,)))
    write_mask(tmp_path / "masks" / "100000.png", np.zeros(SIZE, np.uint8))
    return tmp_path


def truth(results):
    return {int(p.stem): np.array(Image.open(p)) for p in sorted((results / "masks").glob("*.png"))}


def exported(results, name):
    return {str(path): content for path, content in FORMATS[name].write(read_records(results))}


def test_records_tell_what_is_in_a_mask(results):
    first, second, third = read_records(results)
    assert [f.frame for f in (first, second, third)] == [3, 7, 100000]
    assert first.time == 0.12 and first.size == SIZE and third.time is None
    one, five = first.objects
    assert (one.object, one.box, one.area) == (1, (30, 10, 20, 10), 190)
    assert one.confidence == 0.9877 and one.lost is False
    assert five.box == (0, 5, 10, 35) and five.area == 101
    assert five.centroid == pytest.approx(((5 * 100 + 5.5) / 101, (35 * 100 + 5.5) / 101), abs=0.01)
    gone = second.objects[1]
    assert (gone.object, gone.area, gone.box, gone.centroid) == (5, 0, (0, 0, 0, 0), None)
    assert gone.lost is True and gone.confidence == 0.25
    assert third.objects == ()


def test_a_mask_of_another_program_has_no_confidence(tmp_path):
    grey = np.zeros(SIZE, np.uint8)
    grey[3, 4] = 9
    Image.fromarray(grey).save(tmp_path / "00000.png")
    (record,) = read_frame(tmp_path / "00000.png").objects
    assert record.object == 9 and record.box == (4, 3, 1, 1) and record.centroid == (4.5, 3.5)
    assert record.confidence is None and record.lost is None


def test_pixels_of_lost_objects_are_left_out(results):
    path = results / "masks" / "00003.png"
    ids = np.array(Image.open(path))
    write_mask(path, ids, describe(0.12, {1: 0.9, 5: 0.4}, (5,)))
    kept, blanked = read_frame(path).objects, read_frame(path, blank_lost=True).objects
    assert [record.lost for record in kept] == [record.lost for record in blanked] == [False, True]
    assert [record.area for record in kept] == [(ids == 1).sum(), (ids == 5).sum()]
    assert [record.area for record in blanked] == [(ids == 1).sum(), 0]


@pytest.mark.parametrize("content", [b"", b"no png", b"rgb"])
def test_a_damaged_mask_is_an_error_of_one_line(tmp_path, content):
    path = tmp_path / "00000.png"
    if content == b"rgb":
        Image.new("RGB", (4, 4)).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"00000\.png.*cannot be read"):
        read_frame(path)


@pytest.mark.parametrize("text", ["{", "[]", '{"objects": 3}', '{"objects": {"x": {}}}'])
def test_a_damaged_text_is_an_error_of_one_line(tmp_path, text):
    write_mask(tmp_path / "00000.png", np.zeros(SIZE, np.uint8), {"mobilevos": text})
    with pytest.raises(InputError, match=r"00000\.png.*cannot be read"):
        read_frame(tmp_path / "00000.png")


def test_coco_is_read_by_pycocotools(results):
    coco_module = pytest.importorskip("pycocotools.coco")
    (results / "coco.json").write_bytes(exported(results, "coco")["coco.json"])
    coco = coco_module.COCO(str(results / "coco.json"))
    names = {i: image["file_name"] for i, image in coco.imgs.items()}
    assert names == {3: "00003.png", 7: "00007.png", 100000: "100000.png"}
    assert {i: c["name"] for i, c in coco.cats.items()} == {1: "object 1", 5: "object 5"}
    found = {i: np.zeros(SIZE, np.uint8) for i in names}
    for a in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(a)
        found[a["image_id"]] += mask * np.uint8(a["category_id"])
        assert a["area"] == mask.sum() and a["track_id"] == a["category_id"]
        rows, columns = np.nonzero(mask)
        assert a["bbox"][:2] == [columns.min(), rows.min()]
    for frame, ids in truth(results).items():
        np.testing.assert_array_equal(found[frame], ids)


def test_yolo_has_a_polygon_for_each_object(results):
    files = exported(results, "yolo")
    assert files["yolo/labels/100000.txt"] == b""
    assert b"  0: object 1\n" in files["yolo/data.yaml"]
    assert b"  4: object 5\n" in files["yolo/data.yaml"]
    for frame, ids in truth(results).items():
        drawn = np.zeros(SIZE, np.uint8)
        for line in files[f"yolo/labels/{frame:05d}.txt"].decode().splitlines():
            label, *numbers = line.split()
            shares = np.array(numbers, float).reshape(-1, 2)
            assert shares.min() >= 0 and shares.max() <= 1
            filled, _ = fill(shares * SIZE[::-1], SIZE)
            drawn[filled] = int(label) + 1
        np.testing.assert_array_equal(drawn, ids)


def test_cvat_runs_fill_the_box(results):
    root = ET.fromstring(exported(results, "cvat")["cvat.xml"])
    assert root.findtext("version") == "1.1"
    labels = [label.findtext("name") for label in root.iter("label")]
    assert labels == ["object 1", "object 5"]
    for image in root.iter("image"):
        drawn = np.zeros(SIZE, np.uint8)
        for mask in image.iter("mask"):
            left, top, w, h = (int(mask.attrib[k]) for k in ("left", "top", "width", "height"))
            runs = [int(n) for n in mask.attrib["rle"].split(",")]
            inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(h, w)
            drawn[top : top + h, left : left + w][inside] = int(mask.attrib["label"].split()[1])
        np.testing.assert_array_equal(drawn, truth(results)[int(image.attrib["id"])])
        assert image.attrib["name"] == f"{int(image.attrib['id']):05d}.png"


def test_labelme_masks_fill_the_box(results):
    files = exported(results, "labelme")
    for frame, ids in truth(results).items():
        told = json.loads(files[f"labelme/{frame:05d}.json"])
        assert told["imagePath"] == f"{frame:05d}.png"
        assert (told["imageHeight"], told["imageWidth"]) == SIZE
        drawn = np.zeros(SIZE, np.uint8)
        for shape in told["shapes"]:
            (x0, y0), (x1, y1) = shape["points"]
            inside = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))), bool)
            drawn[y0 : y1 + 1, x0 : x1 + 1][inside] = shape["group_id"]
        np.testing.assert_array_equal(drawn, ids)


def test_csv_and_jsonl_tell_the_same(results):
    rows = list(csv.DictReader(exported(results, "csv")["records.csv"].decode().splitlines()))
    lines = exported(results, "jsonl")["records.jsonl"].decode().splitlines()
    told = [json.loads(line) for line in lines]
    assert [(int(r["frame"]), int(r["object"])) for r in rows] == [(3, 1), (3, 5), (7, 1), (7, 5)]
    for row, line in zip(rows, told, strict=True):
        assert [int(row[k]) for k in ("left", "top", "width", "height")] == line["box"]
        assert int(row["area"]) == line["area"] and bool(int(row["lost"])) == line["lost"]
        assert float(row["confidence"]) == line["confidence"]
        assert line["rle"]["size"] == list(SIZE)
    assert rows[3]["x"] == rows[3]["y"] == "" and told[3]["centroid"] is None


def test_runs_start_with_the_background():
    assert run_lengths(np.array([True, True, False])) == [0, 2, 1]
    assert run_lengths(np.array([False, True])) == [1, 1]
    assert run_lengths(np.zeros(0, bool)) == [0]
