"""The GPU backend as its users meet it, on stand-ins: bundles, command line, what it needs."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import numpy as np
import pytest
from doubles import cuda_driver, rtx
from doubles.rig import MODEL, rigged, toy_bundle
from doubles.videos import SIZE, load, squares, video

from engine import runtime
from engine.errors import ModelError
from engine.runtime.base import StepInput
from engine.segmenter import Segmenter


def test_neither_torch_nor_triton_is_needed():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['triton'] = None\n"
        "import engine.runtime.cuda, engine.segmenter, kernels.launch, kernels.tiles\n"
        "assert not {'onnx', 'tensorrt_rtx', 'cuda.bindings'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_calls_in_use_are_the_real_ones():
    """Every call of the stand-ins exists, and takes parameters of these names in this order."""
    from cuda.bindings import driver as real

    calls = [name for name in vars(cuda_driver.Driver) if name.startswith("cu")]
    assert len(calls) > 30
    for name in calls:
        got = list(inspect.signature(getattr(cuda_driver.Driver, name)).parameters)[1:]
        assert got == list(inspect.signature(getattr(real, name)).parameters), name


def test_tensorrts_methods_in_use_are_the_real_ones():
    """The real ones tell their signatures in their docstrings: ``name(self: …, parameter: …``."""
    import tensorrt_rtx as real

    doubles = (rtx.Runtime, rtx.ICudaEngine, rtx.IExecutionContext, rtx.IRuntimeConfig)
    checked = 0
    for double in (*doubles, rtx.IRuntimeCache):
        for name, method in vars(double).items():
            if name.startswith("_") or not callable(method):
                continue
            text = getattr(getattr(real, double.__name__), name).__doc__
            heads = re.findall(rf"{name}\(self: (.*?)\) ->", text)
            assert heads, (double.__name__, name)
            got = list(inspect.signature(method).parameters)[1:]
            told = [re.findall(r", (\w+): ", head) for head in heads]
            assert got in told, (name, got, told)
            checked += 1
    assert checked >= 12
    strategy = real.ExecutionContextAllocationStrategy
    assert strategy.USER_MANAGED and real.DynamicShapesKernelSpecializationStrategy.EAGER
    for name in ("num_io_tensors", "device_memory_size_v2"):
        assert isinstance(getattr(real.ICudaEngine, name), property)
    assert isinstance(real.IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy, property)


def test_the_runtime_cache_lies_beside_the_bundle(tmp_path):
    made = toy_bundle(tmp_path, 1, SIZE)
    before = sorted(made.folder.iterdir())
    with rigged([made]) as rig:
        for _ in range(2):
            with load(rig) as seg:
                seg.start(video(1)[0], squares(1))
    assert sorted(made.folder.iterdir()) == before, "what is hashed stays as it was"
    (cache,) = [p for p in tmp_path.iterdir() if p.is_file()]
    assert cache.name.startswith(f"{made.folder.name}.sm_86.") and cache.suffix == ".cache"
    assert cache.read_bytes() == b"compiled kernels"


def test_the_users_way(toys):
    """By ``Segmenter.load`` and ``auto``: hashes are checked, bundles pinned, devices released."""
    import hashlib

    manifest = (toys[0].folder / "manifest.json").read_bytes()
    pin = hashlib.sha256(manifest).hexdigest()
    with rigged(toys) as rig:
        assert runtime.choose("auto", MODEL, rig.bundles)[0] == "tensorrt-rtx"
        with Segmenter.load(bundles=rig.bundles, expect_sha256=pin) as seg:
            assert seg.backend == "tensorrt-rtx"
            seg.start(video(1)[0], squares(1))
            with pytest.raises(ModelError, match="not the expected"):
                seg.step(video(1)[0], squares(2))
        assert not any(rig.machine.live().values()), rig.machine.live()
        why = runtime.choose("auto", "mobilevos-resnet18", rig.bundles)[1]
        assert "run: python -m engine.build --fp16 --model mobilevos-resnet18" in why


def test_bundles_of_open_sizes(tmp_path):
    """Their shapes are set from the video's size, and then they give what a fixed one gives."""
    frames = video(5)
    masks = []
    for name, dynamic in (("fixed", None), ("open", ((32, 32), (128, 128)))):
        made = toy_bundle(tmp_path / name, 1, SIZE, dynamic=dynamic)
        with rigged([made]) as rig, load(rig) as seg:
            masks.append(list(seg.segment(frames, squares(1))))
    np.testing.assert_array_equal(*masks)


def test_step_input_of_a_plan_fills_empty_columns():
    from engine.runtime.gpu.plan import Controls

    controls = Controls(objects=4, reads=2)
    offsets, size = controls.offsets()
    block = np.full(size, 0xEE, np.uint8)
    task = StepInput(
        frame=None,
        slots=np.array([[2, 0], [3, 1]], np.int32),
        labels=np.array([0, 7, 9], np.uint8),
        write=1,
        given=np.zeros(1, np.float32),
        use_given=np.array([False, True]),
    )
    controls.fill(controls.views(block), task)
    at = offsets["slots"]
    slots = block[at : at + 32].view(np.int32).reshape(4, 2)
    assert slots.tolist() == [[2, 0], [3, 1], [-1, -1], [-1, -1]]
    assert block[offsets["labels"] :][:5].tolist() == [0, 7, 9, 0, 0]
    assert block[offsets["use_given"] :][:4].tolist() == [0, 1, 0, 0]
    assert block[offsets["active"] :][:4].tolist() == [1, 1, 0, 0]
    assert all(at % 256 == 0 for at in offsets.values())


def test_the_command_line_pins_a_bundle(toys, tmp_path, capsys):
    """``segment`` on the GPU backend, with the manifest's hash and with another one."""
    import hashlib

    from PIL import Image

    from engine.cli import main
    from engine.media.masks import write_mask

    frames = tmp_path / "frames"
    frames.mkdir()
    for i, frame in enumerate(video(3)):
        Image.fromarray(frame).save(frames / f"{i}.png")
    write_mask(tmp_path / "first.png", squares(1))
    pin = hashlib.sha256((toys[0].folder / "manifest.json").read_bytes()).hexdigest()
    with rigged(toys) as rig:
        command = ["segment", str(frames), "--mask", str(tmp_path / "first.png")]
        command += ["--backend", "tensorrt-rtx", "--bundles", str(rig.bundles), "--expect-sha256"]
        assert main([*command, pin, "--out", str(tmp_path / "out")]) == 0
        assert len(list((tmp_path / "out" / "masks").iterdir())) == 3
        assert "on tensorrt-rtx" in capsys.readouterr().out
        assert main([*command, "f" * 64, "--out", str(tmp_path / "other")]) == 2
        assert "not the expected" in capsys.readouterr().err
        assert not any(rig.machine.live().values()), rig.machine.live()
