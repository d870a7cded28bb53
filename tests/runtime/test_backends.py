"""Conformance: every backend against PyTorch, stage by stage and over a whole real clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine import Segmenter
from engine.geometry import Geometry, masks_to_network
from engine.options import LoadOptions
from engine.runtime import create
from engine.runtime.base import StepInput
from engine.runtime.ort import OrtBackend
from engine.segmenter import Segmenter as Loop
from engine.weights import graph_path

MODEL = "mobilevos-mobilenetv2"
BACKENDS = ("cpu",)  # each is held to `reference`


@pytest.fixture(params=BACKENDS)
def backend(request):
    made = create(LoadOptions(MODEL, request.param))
    yield made
    made.close()


@pytest.fixture
def reference():
    made = create(LoadOptions(MODEL, "reference"))
    yield made
    made.close()


def poison(backend, geometry, keys, values):
    """Give a backend a memory, with NaN in the slot that the step is going to write."""
    backend.open(geometry)
    keys, values = keys.copy(), values.copy()
    keys[0], values[0] = np.nan, np.nan
    backend.import_memory(keys, values)


@pytest.mark.parametrize("alike", [False, True])  # whether all objects read the same slots
@pytest.mark.parametrize(("height", "width", "size", "objects"), [
    (64, 96, 480, 1), (50, 75, 480, 2), (33, 129, 24, 3), (1, 1, 480, 1), (120, 90, 64, 5),
])  # fmt: skip
def test_one_step_with_the_memory_forced(
    backend, reference, rng, height, width, size, objects, alike
):  # fmt: skip
    geometry = Geometry.fit(height, width, size)
    n = geometry.tokens
    keys = rng.normal(0, 1, (4, n, 64)).astype(np.float32)
    values = rng.normal(0, 1, (4, objects, n, 64)).astype(np.float32)
    mask = rng.integers(0, objects + 1, (height, width)).astype(np.uint8)
    ids = list(range(1, objects + 1))
    slots = rng.choice([-1, 1, 2, 3], (objects, 2)).astype(np.int32)
    if alike:
        slots[:] = rng.choice([1, 2, 3], 2)
    task = StepInput(
        frame=rng.integers(0, 256, (height, width, 3), np.uint8),
        slots=slots,
        labels=np.array([0, *rng.choice(np.arange(1, 256), objects, False)], np.uint8),
        write=0,
        given=masks_to_network(mask, ids, geometry),
        use_given=rng.random(objects) < 0.3,
    )
    results = []
    for b in (reference, backend):
        poison(b, geometry, keys, values)
        ids_mask = b.step(task)
        results.append((ids_mask, b.probabilities().copy(), *b.export_memory(), b.scores().copy()))
    (mask_a, soft_a, keys_a, values_a, scores_a), (mask_b, soft_b, keys_b, values_b, scores_b) = (
        results
    )
    np.testing.assert_allclose(scores_b, scores_a, atol=1e-3)
    assert mask_b.dtype == np.uint8 and mask_b.shape == (height, width)
    np.testing.assert_allclose(keys_b[0], keys_a[0], atol=1e-3)
    np.testing.assert_allclose(soft_b, soft_a, atol=1e-3)
    np.testing.assert_allclose(values_b[0], values_a[0], atol=1e-2, rtol=1e-3)
    np.testing.assert_array_equal(keys_b[1:], keys[1:])
    np.testing.assert_array_equal(values_b[1:], values[1:])
    # Where the two masks differ, the two best probabilities must have been a tie.
    if geometry.network == geometry.source:
        top = np.sort(soft_a[:, :height, :width], axis=0)
        assert (mask_a == mask_b)[top[-1] - top[-2] > 2e-3].all()
    else:
        assert (mask_a == mask_b).mean() > 0.995


def test_logits_stage_by_stage_over_a_real_clip(clip):
    """The memory is the reference's in every frame; logits agree to 1e-3, in fp32."""
    frames, mask = clip
    geometry = Geometry.fit(*mask.shape, 480)
    reference = create(LoadOptions(MODEL, "reference"))
    cpu = create(LoadOptions(MODEL, "cpu"))
    assert isinstance(cpu, OrtBackend)
    loop = Loop(reference, MODEL, "")
    loop.start(frames[0], mask)
    decoded: list[torch.Tensor] = []
    reference.model.decode.register_forward_hook(lambda _, __, out: decoded.append(out))
    logits = np.empty((1, geometry.padded[0] // 4, geometry.padded[1] // 4), np.float32)
    worst = 0.0
    for frame in frames[1:]:
        keys, values = reference.export_memory()
        inputs = {
            "frame": frame, "keys": keys, "values": values, "slots": loop._memory.table(),
            "given": np.zeros((1, *geometry.padded), np.float32),
            "use_given": np.zeros(1, np.bool_),
            "output_size": np.array(geometry.source), "labels": np.array([0, 1], np.uint8),
        }  # fmt: skip
        loop.step(frame)
        logits[:] = np.nan
        cpu.run(inputs, {"logits": logits})
        worst = max(worst, float(np.abs(logits - decoded[-1].numpy()).max()))
    print(f"largest difference of a logit: {worst:.2e}")
    assert 0 < worst <= 1e-3


@pytest.mark.parametrize("name", BACKENDS)
def test_free_running_masks_agree(clip, name):
    frames, mask = clip
    both = either = 0
    with Segmenter.load(MODEL, name) as a, Segmenter.load(MODEL, "reference") as b:
        for x, y in zip(a.segment(frames, mask), b.segment(frames, mask), strict=True):
            both += ((x > 0) & (y > 0)).sum()
            either += ((x > 0) | (y > 0)).sum()
    assert either > 20 * 500, "the object is there"
    assert both / either >= 0.999


@pytest.mark.parametrize("name", (*BACKENDS, "reference"))
def test_same_input_same_masks(clip, name):
    frames, mask = clip
    with Segmenter.load(MODEL, name) as seg:
        first = list(seg.segment(frames[:4], mask))
        again = list(seg.segment(frames[:4], mask))
    np.testing.assert_array_equal(first, again)


def test_the_graph_shares_its_weights_with_pytorch():
    """The ONNX file is small since its weights lie in the safetensors file beside it."""
    assert graph_path(MODEL).stat().st_size < 300_000
