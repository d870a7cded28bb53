"""The backend ``cpu-int8`` and the quantizer that makes its graph."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.davis import davis
from PIL import Image

from engine import Segmenter, runtime
from engine.errors import BackendError, InputError, ModelError
from engine.export import quantize
from engine.media.masks import write_mask
from engine.runtime import vnni
from engine.weights import FOLDER, MODELS, find, int8_path, write_sums

MODEL = "mobilevos-mobilenetv2"
needs_vnni = pytest.mark.skipif(bool(vnni.why_no_int8()), reason=vnni.why_no_int8())


@pytest.mark.parametrize(
    ("machine", "flags", "reason"),
    [
        ("x86_64", "flags : fpu avx512f avx512_vnni", ""),
        ("AMD64", "flags : fpu avx2 avx_vnni", ""),
        ("x86_64", "flags : fpu avx2 avx512f", "no VNNI"),
        ("x86_64", None, "only Linux tells"),
        ("aarch64", None, ""),
    ],
)
def test_where_eight_bits_would_overflow(machine, flags, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(vnni.platform, "machine", lambda: machine)
    monkeypatch.setattr(vnni, "CPUINFO", tmp_path / "cpuinfo")
    if flags:
        vnni.CPUINFO.write_text(flags)
    assert reason in vnni.why_no_int8()
    assert bool(reason) == bool(vnni.why_no_int8()) == bool(runtime.status()["cpu-int8"])
    if reason:
        with pytest.raises(BackendError, match="use the backend cpu"):
            Segmenter.load(MODEL, "cpu-int8")


@pytest.fixture(scope="module")
def made(tmp_path_factory, clip) -> Path:
    """The int8 graph calibrated on the first frames of the demo clip."""
    root, out = tmp_path_factory.mktemp("davis"), tmp_path_factory.mktemp("int8")
    images, masks = root / "JPEGImages" / "rabbit", root / "Annotations" / "rabbit"
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    for t, frame in enumerate(clip[0][: quantize.STEPS]):
        Image.fromarray(frame).save(images / f"{t:05d}.png")
        write_mask(masks / f"{t:05d}.png", clip[1])
    assert quantize.main(["--davis", str(root), "--out", str(out)]) == 0
    return int8_path(MODEL, out)


def test_recorded_steps_have_a_memory(tmp_path):
    root = davis(tmp_path, {"ant": 1, "bee": 2})
    (step,) = quantize.record(MODEL, FOLDER, root, ["ant"])
    assert step["use_given"].shape == (2,) and not step["use_given"].any()
    anchor, last = step["slots"][0]
    assert anchor >= 2 and last not in (anchor, -1), "the first frame and a later one are read"
    assert np.abs(step["values"][last]).max() > 0
    with pytest.raises(InputError, match="no sequence ent"):
        quantize.record(MODEL, FOLDER, root, ["ent"])


@pytest.mark.build
def test_what_is_in_eight_bits_and_what_is_not(made):
    graph = onnx.load(made).graph
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    producer = {out: n for n in graph.node for out in n.output}
    convolutions = [n for n in graph.node if n.op_type == "Conv"]
    int8 = [weights[producer[n.input[1]].input[0]] for n in convolutions]
    assert len(int8) > 60 and all(w.dtype == np.int8 for w in int8)
    assert max(np.abs(w.astype(int)).max() for w in int8) == 127, "all 8 bits are used"
    read = {o: n.op_type for o, n in producer.items() if o.startswith("read_memory/")}
    assert list(read.values()).count("MatMul") == 2
    assert "QuantizeLinear" not in read.values(), "the memory read is not rounded"


@pytest.mark.build
def test_no_trace_of_the_machine_it_was_made_on(made):
    raw = made.read_bytes()
    for word in (str(Path.home()), str(Path.cwd()), str(made.parent), "site-packages"):
        assert word.encode() not in raw, word


@pytest.mark.build
@needs_vnni
def test_a_calibration_of_ones_own_runs(made, clip, tmp_path):
    for path in (*find(MODEL), made):
        shutil.copy(path, tmp_path)
    write_sums(tmp_path)
    frames, mask = clip
    with Segmenter.load(MODEL, "cpu-int8", weights=tmp_path) as seg:
        assert seg.backend == "cpu-int8"
        assert (seg.start(frames[0], mask) == mask).all()
        assert seg.step(frames[1]).any()


@pytest.mark.slow
@needs_vnni
@pytest.mark.parametrize("model", [m for m in MODELS if int8_path(m).is_file()])
def test_free_running_masks_stay_near_those_of_fp32(model, clip):
    frames, mask = clip
    both = either = 0
    with Segmenter.load(model, "cpu-int8") as a, Segmenter.load(model, "cpu") as b:
        for x, y in zip(a.segment(frames, mask), b.segment(frames, mask), strict=True):
            both += ((x > 0) & (y > 0)).sum()
            either += ((x > 0) | (y > 0)).sum()
    print(f"IoU {both / either:.4f}")
    assert either > 20 * 500, "the object is there"
    assert 0.9 <= both / either < 1


@pytest.mark.build
@needs_vnni
def test_a_graph_of_other_weights_is_refused(made, tmp_path):
    weights, graph = find(MODEL)
    for path in (weights, graph):
        shutil.copy(path, tmp_path)
    with pytest.raises(ModelError, match=r"no int8 graph.*engine\.export\.quantize"):
        Segmenter.load(MODEL, "cpu-int8", weights=tmp_path)
    shutil.copy(made, tmp_path)
    with (tmp_path / weights.name).open("ab") as file:
        file.write(b"\0")
    write_sums(tmp_path)
    with pytest.raises(ModelError, match=r"other weights.*engine\.export\.quantize"):
        Segmenter.load(MODEL, "cpu-int8", weights=tmp_path)
