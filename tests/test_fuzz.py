"""Files that are damaged or made by hand are read, or an error of the engine says why."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import operator
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.bundle import (
    MANIFEST,
    Engine,
    Manifest,
    Stage,
    Tensor,
    find_bundle,
    load_bundle,
    write_bundle,
)
from engine.commands.results import Results
from engine.errors import EngineError, InputError, ModelError
from engine.media.masks import read_mask

fuzzed = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """``whole`` with bytes replaced, inserted or cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        what = draw(st.sampled_from(["flip", "insert", "cut", "drop"]))
        if what == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif what == "insert":
            data[at:at] = draw(st.binary(max_size=8))
        elif what == "cut":
            del data[at:]
        else:
            del data[at : at + draw(st.integers(1, 16))]
    return bytes(data)


# Masks


def picture(form: str, mode: str) -> bytes:
    ids = np.zeros((9, 11), np.uint8)
    ids[2:5, 3:8], ids[6:8, 1:4] = 1, 2
    buffer = io.BytesIO()
    Image.fromarray(ids * 100).convert(mode).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "I;16")],
)
@fuzzed
@given(data=st.data())
def test_mask_files(tmp_path: Path, form: str, mode: str, data: st.DataObject) -> None:
    path = tmp_path / "mask"
    path.write_bytes(data.draw(damaged(picture(form, mode))))
    with warnings.catch_warnings(), contextlib.suppress(InputError):
        warnings.simplefilter("ignore")
        ids, notes = read_mask(path)
        assert ids.dtype == np.uint8 and ids.ndim == 2 and ids.any()
        assert all(isinstance(note, str) for note in notes)


# The point to resume from


def save(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    results = Results(folder)
    results.masks.mkdir(exist_ok=True)
    results.save_resume(3, {"input": "v"}, {"ids": np.arange(3), "keys": np.ones((2, 4, 8))})
    return folder / ".resume.npz"


@pytest.mark.parametrize("signed", [False, True])
@fuzzed
@given(data=st.data())
def test_points_to_resume_from(tmp_path: Path, signed: bool, data: st.DataObject) -> None:
    """``signed``: with the digest of what they hold, as one who means it would."""
    path = save(tmp_path / "out")
    content = path.read_bytes()
    if signed:
        content = data.draw(damaged(content[:-32]))
        content += hashlib.sha256(content).digest()
    else:
        content = data.draw(damaged(content))
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        index, state = Results(tmp_path / "out").load_resume({"input": "v"})
        assert isinstance(index, int) and all(isinstance(a, np.ndarray) for a in state.values())


# Manifests

ENGINE = b"engine"
KIND = Tensor("float16", (1, 3, 64, 96))
STAGE = Stage(
    {"image": KIND}, {"key": KIND}, {"sm_86": "a.onnx"}, {"sm_86": Engine("a.engine", 1, 2)}
)
WHOLE = Manifest(
    model="m", model_sha256="0" * 64, precision="fp16",
    runtime="tensorrt-rtx", runtime_version="1", versions={"onnx": "1"},
    size=(64, 96), objects=1, dynamic=((32, 32), (96, 96)), targets=("sm_86",),
    stages={"encode_query": STAGE}, kernels={"sm_86": {"preprocess": "p.json"}},
    parity={"sm_86": {"free_iou": 1.0}}, files={},
)  # fmt: skip
FILES = {"a.onnx": b"graph", "a.engine": ENGINE, "p.json": b"{}"}

numbers = st.integers() | st.floats(allow_nan=True) | st.sampled_from([0, -1, 2**70, 1e400])
words = st.text(max_size=5) | st.sampled_from(["a.onnx", "../a", "", "sm_86", "fp32", "\udc80"])
leaves = st.none() | st.booleans() | numbers | words
trees = st.recursive(
    leaves, lambda x: st.lists(x, max_size=3) | st.dictionaries(words, x, max_size=3), max_leaves=4
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every node below the root."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, child in children:
        found.append((*path, key))
        if isinstance(child, dict | list):
            found += places(child, (*path, key))
    return found


def look_for_bundles(folder: Path) -> None:
    with contextlib.suppress(EngineError):
        load_bundle(next(folder.iterdir()))
    with contextlib.suppress(ModelError):
        find_bundle("m", (64, 96), folder=folder)


@fuzzed
@given(data=st.data())
def test_manifests_of_another_shape(tmp_path: Path, data: st.DataObject) -> None:
    """Any JSON in the place of any node, or the node missing."""
    folder = write_bundle(tmp_path, WHOLE, FILES)
    tree = json.loads((folder / MANIFEST).read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(places(tree)))
        parent = functools.reduce(operator.getitem, way, tree)
        if data.draw(st.booleans()):
            parent[last] = data.draw(trees)
        else:
            del parent[last]
    (folder / MANIFEST).write_text(json.dumps(tree))
    look_for_bundles(tmp_path)


@fuzzed
@given(data=st.data())
def test_manifests_of_other_bytes(tmp_path: Path, data: st.DataObject) -> None:
    folder = write_bundle(tmp_path, WHOLE, FILES)
    (folder / MANIFEST).write_bytes(data.draw(damaged((folder / MANIFEST).read_bytes())))
    look_for_bundles(tmp_path)
