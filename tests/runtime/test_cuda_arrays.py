"""Frames and masks on the GPU and on the host as arrays of other libraries, on stand-ins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from doubles.rig import rigged
from doubles.videos import SIZE, OnGpu, load, squares, video

from engine.errors import InputError
from engine.runtime.gpu import arrays
from engine.segmenter import Segmenter


@pytest.mark.parametrize(("change", "text"), [
    ({"typestr": "<f4"}, "uint8, but this one is <f4"),
    ({"strides": (1, 64, 6144)}, "must be contiguous"),
    ({"shape": (64, 96, 4)}, r"must be RGB, .*\(64, 96, 4\)"),
])  # fmt: skip
def test_a_bad_frame_on_the_gpu(toys, change, text):
    with rigged(toys) as rig, load(rig) as seg:
        seg.start(video(1)[0], squares(1))
        frame = OnGpu(rig, video(1)[0])
        frame.__cuda_array_interface__ |= change
        with pytest.raises(InputError, match=text):
            seg.step(frame)
        seg.step(video(1)[0])


def test_a_frame_on_the_gpu_is_refused_by_a_backend_of_the_host():
    class Frame:
        shape = (64, 96, 3)

        def __dlpack_device__(self):
            return 2, 0

    wrong = pytest.raises(InputError, match="lies on a GPU, but the backend 'cpu'")
    with Segmenter.load(backend="cpu") as seg, wrong:
        seg.start(Frame(), squares(1))
    with pytest.raises(InputError, match="leave output='dlpack' out"):
        Segmenter.load(backend="cpu", output="dlpack")


def test_host_arrays_of_other_libraries(toys):
    torch = pytest.importorskip("torch")
    frames = video(3)
    with rigged(toys) as rig, load(rig) as a, load(rig) as b:
        want = list(a.segment(frames, squares(1)))
        got = list(b.segment([torch.from_numpy(f) for f in frames], squares(1)))
    np.testing.assert_array_equal(got, want)


class Exporter:
    """A tensor of PyTorch on the stand-in GPU: its capsule is PyTorch's own."""

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.shape, self.streams = tensor, tuple(tensor.shape), []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self.tensor.__dlpack__()


def test_a_frame_by_dlpack(toys):
    torch = pytest.importorskip("torch")
    frames = video(3)
    with rigged(toys) as rig, load(rig) as seg:
        want = list(seg.segment(frames, squares(1)))
        address = rig.machine.allocate(frames[1].nbytes, "device")
        there = rig.machine.array(address, frames[1].shape, np.uint8)
        there[:] = frames[1]
        seg.start(frames[0], squares(1))
        frame = Exporter(torch.from_numpy(there))
        np.testing.assert_array_equal(seg.step(frame), want[1])
        # The producer orders its stream before ours, if we name ours.
        assert frame.streams == [int(seg._backend.upload)]
        with pytest.raises(InputError, match="must be contiguous"):
            seg.step(Exporter(torch.zeros(3, 64, 96, dtype=torch.uint8).permute(1, 2, 0)))
        with pytest.raises(InputError, match="uint8, but"):
            seg.step(Exporter(torch.zeros(64, 96, 3)))


def test_a_mask_by_dlpack_is_a_tensor_without_a_copy(toys, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(arrays, "CUDA", 1)  # PyTorch here knows no other memory than the host's
    with rigged(toys) as rig:
        with load(rig, output="dlpack") as seg:
            seg.start(video(1)[0], squares(1))
            mask = seg.step(video(1)[0])
            address, expected = mask.address, mask.numpy()
            unused = mask.__dlpack__()
            tensor = torch.from_dlpack(mask)
            del mask, unused
        assert tensor.data_ptr() == address and tensor.shape == SIZE
        np.testing.assert_array_equal(tensor.numpy(), expected)
        assert rig.machine.live()["device"] == 1, "the tensor keeps the mask"
        del tensor
        assert not any(rig.machine.live().values()), rig.machine.live()
        assert not arrays._held
