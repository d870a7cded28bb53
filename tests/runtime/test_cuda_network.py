"""The GPU backend on stand-ins, with the real graphs in its engines, against `reference`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.rig import built, network_bundle, rigged
from helpers.interpreted import Interpreter
from PIL import Image

from engine import runtime
from engine.build.parity import compare
from engine.build.runners import EngineStages
from engine.bundle import load_bundle
from engine.commands.validate import validate
from engine.data.clips import demo_clip
from engine.media.masks import resize_ids
from engine.model import load
from engine.options import LoadOptions
from engine.segmenter import Segmenter
from engine.weights import FOLDER, find

MODEL = "mobilevos-mobilenetv2"
SIZE = (64, 96)
pytestmark = pytest.mark.build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("network")


@pytest.fixture(scope="module")
def fp32(folder: Path) -> list[Any]:
    return [network_bundle(folder / "fp32", k, SIZE) for k in (2, 4)]


@pytest.fixture
def reference() -> Iterator[Segmenter]:
    with Segmenter(runtime.create(LoadOptions(MODEL, "reference")), MODEL, "h") as seg:
        yield seg


@pytest.fixture(scope="module")
def film(clip) -> tuple[list[np.ndarray], np.ndarray]:
    """Twenty frames of the demo clip at 64x96, and the first one's mask."""
    frames, mask = clip
    small = [np.asarray(Image.fromarray(f).resize(SIZE[::-1])) for f in frames[:20]]
    return small, resize_ids(mask, SIZE)


def played(seg: Segmenter, film: tuple[list[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """A video in which objects come and go, past the borders of the buckets."""
    frames, mask = film
    masks = []
    for i, frame in enumerate(frames):
        new = None
        if i in (4, 8, 10):  # 2, 3 and again 3 objects
            new = np.zeros_like(mask)
            new[40:60, 5 * i : 5 * i + 14] = i
        if i in (9, 14):
            seg.remove(8 if i == 9 else 4)
        masks.append(seg.step(frame, new) if i else seg.start(frame, mask))
    return masks


def overlap(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Pooled IoU: pixels of equal id over pixels that either marks."""
    both = sum(((x == y) & (x > 0)).sum() for x, y in zip(a, b, strict=True))
    either = sum(((x > 0) | (y > 0)).sum() for x, y in zip(a, b, strict=True))
    assert either > 20 * 100, "the objects are there"
    return float(both / either)


def test_masks_are_the_references(fp32, film, reference):
    want = played(reference, film)
    with rigged(fp32) as rig, Segmenter(rig.backend(), MODEL, "h") as seg:
        got = played(seg, film)
        assert seg.ids == reference.ids == (1, 10)
        np.testing.assert_allclose(seg.probabilities, reference.probabilities, atol=1e-3)
        np.testing.assert_allclose(seg._backend.scores(), reference._backend.scores(), atol=1e-4)
        ours, theirs = seg.state_dict(), reference.state_dict()
        np.testing.assert_allclose(ours["keys"], theirs["keys"], atol=1e-3)
        np.testing.assert_allclose(ours["values"], theirs["values"], atol=1e-2, rtol=1e-3)
        # What one backend saved, another goes on from.
        reference.load_state_dict({k: np.array(v) for k, v in ours.items()})
        frame = film[0][5]
        assert overlap([seg.step(frame)] * 20, [reference.step(frame)] * 20) >= 0.999
    assert overlap(got, want) >= 0.999


def test_half_precision(folder, film, reference):
    frames, mask = film
    want = list(reference.segment(frames, mask))
    bundle = network_bundle(folder / "fp16", 1, SIZE, "fp16")
    with rigged([bundle]) as rig, Segmenter(rig.backend(), MODEL, "h") as seg:
        got = list(seg.segment(frames, mask))
        assert seg._backend.export_memory()[0].dtype == np.float32
        off = float(np.abs(seg.probabilities - reference.probabilities).max())
    agreed = overlap(got, want)
    print(f"IoU of fp16 with the reference: {agreed:.5f}; probabilities differ by {off:.5f}")
    assert agreed >= 0.99
    assert 1e-4 < off < 0.1, "16 bits round, but not by much"


def test_a_comparison_runs_the_engines_as_the_product_does(fp32):
    model = load(MODEL, find(MODEL)[0])
    with rigged(fp32) as rig:
        with EngineStages(load_bundle(fp32[0].folder)) as engines:
            found = compare(model, {}, demo_clip(SIZE, 3), 2, "fp32", engines)
        assert not any(rig.machine.live().values()), rig.machine.live()
    assert found.failures() == [] and set(found.stages) == {"encode_query", "decode"}


def test_frames_larger_than_the_network_are_shrunk_on_the_gpu(fp32, clip, reference):
    """In floating point, where the host's Pillow rounds to 8 bits: nearly the same masks."""
    frames = [np.asarray(Image.fromarray(f).resize((192, 128))) for f in clip[0][:12]]
    mask = resize_ids(clip[1], (128, 192))
    reference.size = 64
    want = list(reference.segment(frames, mask))
    with rigged(fp32) as rig, Segmenter(rig.backend(), MODEL, "h", size=64) as seg:
        got = list(seg.segment(frames, mask))
        assert got[0].shape == (128, 192)
    agreed = overlap(got, want)
    print(f"IoU of shrinking in floating point with Pillow's: {agreed:.5f}")
    assert agreed >= 0.98


def test_the_kernels_themselves_in_the_interpreter(fp32, film, reference):
    """The other tests' kernels are their references; here Triton's interpreter runs the source."""
    frames, mask = film[0][:3], film[1]
    want = list(reference.segment(frames, mask))
    worker = Interpreter()
    try:
        with rigged(fp32, interpreter=worker) as rig, Segmenter(rig.backend(), MODEL, "h") as seg:
            got = list(seg.segment(frames, mask))
            assert rig.machine.log.count("memory_read") == 3
    finally:
        worker.close()
    assert overlap(got * 7, want * 7) >= 0.999


def test_a_bundle_as_it_is_built(tmp_path, film, reference):
    """From ``engine.build`` to masks: real engines and cubins, loaded by the real runtime; only
    what would run on a GPU runs in ONNX Runtime, on the graphs that the bundle holds."""
    from engine.build.pipeline import Options, build

    options = Options(
        models=(MODEL,), size=SIZE, objects=(1, 2), targets=("sm_86",), out=tmp_path, frames=2
    )
    bundles = [built(folder) for folder in build(options, print)]
    frames, mask = film
    with rigged(bundles) as rig, rig.load() as seg:
        agreed = overlap(list(seg.segment(frames, mask)), list(reference.segment(frames, mask)))
        assert seg.step(frames[0], np.where(mask > 0, 0, np.eye(*SIZE, dtype=np.uint8) * 9)).any()
        assert seg.ids == (1, 9)
        told = validate(bundles[0].folder, FOLDER, 2)
    print(f"IoU of the bundle with the reference: {agreed:.5f}")
    assert agreed >= 0.99
    assert told["failures"] == [] and told["engines"]["free_iou"] >= 0.99
