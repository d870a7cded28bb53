"""The GPU backends on a GPU: what the stand-ins of `tests/doubles` cannot show.

pytest -m gpu tests/runtime/test_gpu.py    or, with the build and the benchmark: bash bench/gpu.sh
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Segmenter, runtime
from engine.build.pipeline import Options, build
from engine.errors import EngineError

pytestmark = pytest.mark.gpu

MODEL = "mobilevos-mobilenetv2"
SIZE = (192, 320)  # of the network, for frames of 180x320
MOVED = 0.99  # pooled IoU that a backend in fp16 must have with the CPU; fp32: 0.999


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both precisions and the buckets 1 and 4, built for the GPU at hand."""
    out = tmp_path_factory.mktemp("bundles")
    for precision in ("fp16", "fp32"):
        folder = out / precision
        options = Options(
            models=(MODEL,), precision=precision, size=SIZE, objects=(1, 4), out=folder, frames=4
        )
        try:
            build(options, print)
        except EngineError as error:
            pytest.skip(f"nothing can be built here: {error}")
    return out


@pytest.fixture(params=["fp16", "fp32"])
def gpu(request: pytest.FixtureRequest, bundles: Path) -> tuple[str, dict[str, Any], float]:
    """The backend's name, what to load it with, and the IoU that it must have with the CPU."""
    folder = bundles / request.param
    name = runtime.choose("auto", MODEL, folder)[0]
    assert name in ("tensorrt-rtx", "tensorrt"), runtime.choose("auto", MODEL, folder)[1]
    return name, {"bundles": folder}, MOVED if request.param == "fp16" else 0.999


def played(seg: Segmenter, clip: tuple[list[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """Objects are added and removed, past the border of a bucket."""
    frames, mask = clip
    masks = []
    for i, frame in enumerate(frames[:30]):
        new = None
        if i == 10:
            new = np.zeros_like(mask)
            new[20:60, 20:60], new[100:150, 200:260] = 7, 9
        if i == 20:
            seg.remove(7)
        masks.append(seg.step(frame, new) if i else seg.start(frame, mask))
    return masks


def overlap(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    both = sum(int(((x == y) & (x > 0)).sum()) for x, y in zip(a, b, strict=True))
    either = sum(int(((x > 0) | (y > 0)).sum()) for x, y in zip(a, b, strict=True))
    assert either
    return both / either


def test_masks_are_those_of_the_cpu(gpu, clip):
    name, options, least = gpu
    with Segmenter.load(MODEL, name, **options) as seg, Segmenter.load(MODEL, "cpu") as cpu:
        got, want = played(seg, clip), played(cpu, clip)
    agreed = overlap(got, want)
    print(f"{name}: IoU with the CPU {agreed:.5f}")
    assert agreed >= least


def test_a_graph_computes_what_single_launches_do(gpu, clip):
    name, options, _ = gpu
    results = []
    for graphs in (True, False):
        with Segmenter.load(MODEL, name, **options) as seg:
            seg._backend.graphs = graphs
            results.append(played(seg, clip))
    np.testing.assert_array_equal(*results)


def test_two_segmenters_do_not_mix(gpu, clip):
    name, options, _ = gpu
    frames, mask = clip
    with Segmenter.load(MODEL, name, **options) as seg:
        alone = [list(seg.segment(f, mask)) for f in (frames[:20], frames[:1] + frames[20:39])]
    with (
        Segmenter.load(MODEL, name, **options) as a,
        Segmenter.load(MODEL, name, **options) as b,
    ):
        together = list(
            zip(
                a.segment(frames[:20], mask),
                b.segment(frames[:1] + frames[20:39], mask),
                strict=True,
            )
        )
    np.testing.assert_array_equal([x for x, _ in together], alone[0])
    np.testing.assert_array_equal([y for _, y in together], alone[1])


def test_five_hundred_frames_leave_the_memory_as_it_is(gpu, clip):
    name, options, _ = gpu
    frames, mask = clip
    with Segmenter.load(MODEL, name, **options) as seg:
        device: Any = seg._backend.device
        seg.start(frames[0], mask)
        for frame in frames[:4]:
            seg.step(frame)
        before = device.free_bytes()[0]
        for i in range(500):
            seg.step(frames[i % len(frames)])
        assert device.free_bytes()[0] == before


def test_frames_and_masks_stay_on_the_gpu(gpu, clip):
    torch = pytest.importorskip("torch")
    name, options, _ = gpu
    frames, mask = clip
    with Segmenter.load(MODEL, name, **options) as seg:
        want = list(seg.segment(frames[:10], mask))
    with Segmenter.load(MODEL, name, output="dlpack", **options) as seg:
        there = (torch.from_numpy(f).cuda(non_blocking=True) for f in frames[:10])
        got = [torch.from_dlpack(m) for m in seg.segment(there, mask)]
    assert all(m.is_cuda for m in got)
    np.testing.assert_array_equal([m.cpu().numpy() for m in got], want)


def test_the_next_start_needs_no_compiler(gpu, clip):
    name, options, _ = gpu
    if name != "tensorrt-rtx":
        pytest.skip("only TensorRT for RTX compiles at run time")
    with Segmenter.load(MODEL, name, **options) as seg:
        seg.start(clip[0][0], clip[1])
    assert list(options["bundles"].glob("*.cache"))


def test_onnx_cuda(clip):
    why_not = runtime.status(MODEL)["onnx-cuda"]
    if why_not:
        pytest.skip(why_not)
    with Segmenter.load(MODEL, "onnx-cuda") as seg, Segmenter.load(MODEL, "cpu") as cpu:
        assert overlap(played(seg, clip), played(cpu, clip)) >= 0.999


def test_the_reference_with_its_kernel_on_the_gpu(clip):
    with Segmenter.load(MODEL, "reference") as seg, Segmenter.load(MODEL, "cpu") as cpu:
        assert overlap(played(seg, clip), played(cpu, clip)) >= 0.999
