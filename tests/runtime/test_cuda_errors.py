"""What the GPU backend says where it cannot run, on stand-ins: one line, and nothing leaks."""

from __future__ import annotations

import numpy as np
import pytest
from doubles.machine import Machine
from doubles.rig import rigged, toy_bundle
from doubles.videos import SIZE, load, squares, video

from engine.errors import BackendError, ModelError
from engine.runtime.gpu import driver
from engine.segmenter import Segmenter


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.99])
def test_out_of_memory_says_for_what_and_leaks_nothing(toys, share):
    with rigged(toys) as rig, load(rig) as seg:
        seg.start(video(1)[0], squares(1, 2, 3))
        need = sum(b.size for b in rig.machine.blocks.values() if b.kind == "device")
    with rigged(toys, Machine(int(need * share))) as rig:
        with load(rig) as seg, pytest.raises(BackendError) as caught:
            seg.start(video(1)[0], squares(1, 2, 3))
        text = str(caught.value)
        assert "NVIDIA Stand-in is out of memory" in text and "smaller --size" in text
        assert not any(rig.machine.live().values()), rig.machine.live()


@pytest.mark.parametrize(("change", "error", "text"), [
    (lambda rig: rig.driver.answers.update(cuInit=100), BackendError, "no usable GPU"),
    (lambda rig: setattr(rig.driver, "version", 11080), BackendError, "it knows CUDA 11.8"),
    (lambda rig: rig.tensorrt.graphs.clear(), ModelError, "cannot load .*engine.*another version"),
    (
        lambda rig: setattr(rig.driver, "capability", (7, 5)),
        ModelError,
        r"built for sm_86, but NVIDIA Stand-in is sm_75; .* python -m engine.build --fp32 --model",
    ),
    (lambda rig: rig.driver.answers.update(cuLibraryLoadData=209), ModelError, "NO_BINARY_FOR_GPU"),
    (lambda rig: rig.driver.answers.update(cuStreamCreate=999), BackendError, "UNKNOWN"),
])  # fmt: skip
def test_a_gpu_that_cannot_run_it_is_told_in_one_line(toys, change, error, text):
    from cuda.bindings import driver as real

    with rigged(toys) as rig:
        change(rig)
        rig.driver.answers = {n: real.CUresult(c) for n, c in rig.driver.answers.items()}
        with pytest.raises(error, match=text) as caught, load(rig) as seg:
            seg.start(video(1)[0], squares(1))
        assert "\n" not in str(caught.value)


def test_sizes_and_objects_that_nothing_is_built_for(toys):
    with rigged(toys) as rig, load(rig) as seg:
        frame = video(1, size=(64, 64))[0]
        with pytest.raises(ModelError, match=r"no bundle .* at 64x64 .*build .*--size 64x64"):
            seg.start(frame, squares(1, size=(64, 64)))
        with pytest.raises(ModelError, match=r"with 5 object.*--size 64x96 --objects 8"):
            seg.start(video(1)[0], squares(1, 2, 3, 4, 5))
        want = seg.start(video(1)[0], squares(1))  # and goes on
        with pytest.raises(ModelError, match="with 5 object"):
            seg.step(video(1)[0], squares(2, 3, 4, 5))
        assert seg.ids == (1,)
        again = seg.step(video(1, seed=3)[0])
        seg.start(video(1)[0], squares(1))
        np.testing.assert_array_equal(seg.step(video(1, seed=3)[0]), again)
        assert want.any()


def test_no_driver_here():
    """Not on stand-ins: cuda-python itself, on a machine without a driver."""
    try:
        driver.need_driver()
    except BackendError as error:
        assert "no NVIDIA driver" in str(error) and "--backend cpu" in str(error)
        with pytest.raises(BackendError, match="no NVIDIA driver"):
            driver.Device()
    else:
        pytest.skip("there is a driver here")


@pytest.mark.parametrize(("changes", "text"), [
    ({"model_sha256": "0" * 64}, "built of other weights of mobilevos-mobilenetv2"),
])  # fmt: skip
def test_bundles_that_are_refused(toys, tmp_path, changes, text):
    made = toy_bundle(tmp_path, 1, SIZE, **changes)
    with rigged([made]) as rig:
        backend = Segmenter.load(backend="tensorrt-rtx", bundles=rig.bundles)
        with backend as seg, pytest.raises(ModelError, match=text):
            seg.start(video(1)[0], squares(1))
        assert not any(rig.machine.live().values()), rig.machine.live()


def test_a_damaged_engine_is_refused_before_it_is_loaded(tmp_path):
    made = toy_bundle(tmp_path, 1, SIZE)
    with rigged([made]) as rig, load(rig) as seg:
        engine = next(made.folder.glob("*.engine"))
        engine.write_bytes(engine.read_bytes()[:-1])
        with pytest.raises(ModelError, match="bytes instead of"):
            seg.start(video(1)[0], squares(1))
