"""Results in the formats of other tools. Each is one function from records to files.

It takes the frames' records and yields (path below ``exports/``, content). Names of images are
those of the masks, ``00012.png``; an object's name is ``object 3``. Pixels that an object does not
have are nowhere: coco, cvat and labelme leave out an object in frames in which it has none.
"""

from __future__ import annotations

import base64
import csv as csv_module
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from engine.media.outline import polygon
from engine.media.record import FrameRecords, Record
from engine.media.rle import run_lengths

Files = Iterator[tuple[PurePosixPath, bytes]]
Exporter = Callable[[Iterable[FrameRecords]], Files]


def coco(frames: Iterable[FrameRecords]) -> Files:
    """COCO's instances with compressed RLE; ``category_id`` and ``track_id`` are the object's id.

    ``score`` is the confidence, ``lost`` whether the frame lost the object.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for frame in frames:
        height, width = frame.size
        image = {"id": frame.frame, "file_name": name(frame), "width": width, "height": height}
        images.append(image)
        for record in seen(frame):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes 0 for none
                    "image_id": frame.frame,
                    "category_id": record.object,
                    "track_id": record.object,
                    "bbox": list(record.box),
                    "area": record.area,
                    "segmentation": frame.rle(record),
                    "iscrowd": 0,
                    "score": record.confidence,
                    "lost": record.lost,
                }
            )
    categories = [
        {"id": label, "name": title(label)}
        for label in sorted({a["category_id"] for a in annotations})
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    yield PurePosixPath("coco.json"), json.dumps(content).encode()


def jsonl(frames: Iterable[FrameRecords]) -> Files:
    """A line of JSON for each frame and object: all that a record holds, the mask as COCO's RLE."""
    lines = []
    for frame in frames:
        for record in frame.objects:
            line = {**row(frame, record), "box": list(record.box), "centroid": record.centroid}
            line["rle"] = frame.rle(record)
            lines.append(json.dumps(line) + "\n")
    yield PurePosixPath("records.jsonl"), "".join(lines).encode()


def csv(frames: Iterable[FrameRecords]) -> Files:
    """A row for each frame and object, without the mask; an empty cell where nothing is known."""
    text = io.StringIO()
    columns = ("frame", "time", "object", "left", "top", "width", "height", "area", "x", "y")
    table = csv_module.DictWriter(text, (*columns, "confidence", "lost"), lineterminator="\n")
    table.writeheader()
    for frame in frames:
        for record in frame.objects:
            place = dict(zip(("left", "top", "width", "height"), record.box, strict=True))
            centre = dict(zip("xy", record.centroid or (None, None), strict=True))
            cells = {**row(frame, record), **place, **centre}
            cells["lost"] = None if record.lost is None else int(record.lost)
            table.writerow(cells)
    yield PurePosixPath("records.csv"), text.getvalue().encode()


def yolo(frames: Iterable[FrameRecords]) -> Files:
    """YOLO's segments: a text for each frame, a line ``class x y x y …`` for each object.

    The class is the object's id less one, as classes count from 0; coordinates are shares of width
    and height. Pieces and holes are in the one polygon, see `engine.media.outline.polygon`.
    """
    last = 0
    for frame in frames:
        height, width = frame.size
        lines = []
        for record in seen(frame):
            left, top, *_ = record.box
            corners = np.add(polygon(record.mask), (left, top)) / (width, height)
            numbers = " ".join(f"{value:.6g}" for value in corners.ravel().tolist())
            lines.append(f"{record.object - 1} {numbers}\n")
            last = max(last, record.object)
        path = PurePosixPath("yolo/labels", name(frame)).with_suffix(".txt")
        yield path, "".join(lines).encode()
    names = "".join(f"  {label - 1}: {title(label)}\n" for label in range(1, last + 1))
    head = "# put the frames beside labels, as images/00000.png\n"
    text = f"{head}train: images\nval: images\nnames:\n{names}"
    yield PurePosixPath("yolo/data.yaml"), text.encode()


def cvat(frames: Iterable[FrameRecords]) -> Files:
    """CVAT for images 1.1 with masks: runs along the rows of the box, of background first."""
    images, labels, count = [], set(), 0
    for frame in frames:
        height, width = frame.size
        shapes = []
        for record in seen(frame):
            left, top, w, h = record.box
            runs = ", ".join(map(str, run_lengths(record.mask.ravel())))
            shapes.append(
                f'    <mask label={quoteattr(title(record.object))} source="auto" occluded="0" '
                f'rle="{runs}" left="{left}" top="{top}" width="{w}" height="{h}" z_order="0">'
                "</mask>\n"
            )
            labels.add(record.object)
        images.append(
            f'  <image id="{frame.frame}" name="{name(frame)}" width="{width}" '
            f'height="{height}">\n{"".join(shapes)}  </image>\n'
        )
        count += 1
    known = "".join(
        f"      <label><name>{title(label)}</name><type>mask</type><attributes/></label>\n"
        for label in sorted(labels)
    )
    head = (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f"  <meta><task><size>{count}</size><mode>annotation</mode><labels>\n{known}"
        "  </labels></task></meta>\n"
    )
    yield PurePosixPath("cvat.xml"), f"{head}{''.join(images)}</annotations>\n".encode()


def labelme(frames: Iterable[FrameRecords]) -> Files:
    """labelme: a JSON for each frame, with shapes of the type ``mask`` and the image beside it."""
    for frame in frames:
        shapes = []
        for record in seen(frame):
            left, top, w, h = record.box
            png = io.BytesIO()
            Image.fromarray(record.mask).save(png, "PNG")
            shapes.append(
                {
                    "label": title(record.object),
                    "points": [[left, top], [left + w - 1, top + h - 1]],
                    "group_id": record.object,
                    "description": "",
                    "shape_type": "mask",
                    "flags": {},
                    "mask": base64.b64encode(png.getvalue()).decode(),
                }
            )
        content: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": name(frame),
            "imageData": None,
            "imageHeight": frame.size[0],
            "imageWidth": frame.size[1],
        }
        path = PurePosixPath("labelme", name(frame)).with_suffix(".json")
        yield path, json.dumps(content, indent=1).encode()


@dataclass(frozen=True)
class Format:
    """A format: what writes it, and the files that it consists of, below ``exports/``.

    whole: the file that holds all, or the folder. each: the pattern of a file of one frame.
    """

    write: Exporter
    whole: str
    each: str = ""


FORMATS = {
    "coco": Format(coco, "coco.json"),
    "yolo": Format(yolo, "yolo/data.yaml", "yolo/labels/[0-9]*.txt"),
    "csv": Format(csv, "records.csv"),
    "jsonl": Format(jsonl, "records.jsonl"),
    "cvat": Format(cvat, "cvat.xml"),
    "labelme": Format(labelme, "labelme", "labelme/[0-9]*.json"),
}


def name(frame: FrameRecords) -> str:
    """The name of a frame's image, the same as that of its mask."""
    return f"{frame.frame:05d}.png"


def title(label: int) -> str:
    """The name of an object."""
    return f"object {label}"


def seen(frame: FrameRecords) -> list[Record]:
    """The objects that have a pixel in the frame."""
    return [record for record in frame.objects if record.area]


def row(frame: FrameRecords, record: Record) -> dict[str, Any]:
    """What jsonl and csv write alike."""
    return {
        "frame": frame.frame,
        "time": frame.time,
        "object": record.object,
        "area": record.area,
        "confidence": record.confidence,
        "lost": record.lost,
    }
