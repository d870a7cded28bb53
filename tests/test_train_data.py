# ruff: noqa: F811 (fixtures are imported)
"""Training clips: what they are drawn from, and that they depend on seed and step alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_train import SMOKE, clips, data  # noqa: F401

import engine.train.__main__ as command
from engine.data.davis import Dataset
from engine.errors import InputError
from engine.train.config import DEVELOPMENT, Phase
from engine.train.data import MIN_AREA, Clips, load_davis, pick_times


@pytest.mark.parametrize("pairs", [0.0, 1.0])
@pytest.mark.parametrize("static", [0.0, 1.0])
def test_a_batch(clips, pairs, static):
    phase = Phase(until=1, frames=3, supervised=2, static=static, gap=2, pairs=pairs,
                  size=(64, 96), batch=2)  # fmt: skip
    for step in range(3):
        frames, labels, objects, _ = clips.batch(np.random.default_rng([0, step]), phase, 0.5)
        assert objects == (2 if pairs else 1)
        assert frames.shape == (2, 3, 3, 64, 96) and frames.dtype == np.float32
        assert labels.shape == (2, 3, 64, 96) and labels.dtype == np.int64
        assert frames.flags.c_contiguous
        assert frames.min() >= -1 and frames.max() <= 1 and frames.std() > 0.05
        assert set(np.unique(labels)) <= set(range(objects + 1))
        for first in labels[:, 0]:
            for k in range(1, objects + 1):
                assert (first == k).sum() >= MIN_AREA, "the first frame has every object"


def test_a_batch_depends_on_seed_and_step_alone(clips):
    phase = SMOKE.phases[0]

    def draw(seed, step):
        return clips.batch(np.random.default_rng([seed, step]), phase, 0.3)

    one, _, two = draw(0, 5), draw(0, 6), draw(0, 5)  # something else in between
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    assert one[2] == two[2]
    assert not np.array_equal(one[0], draw(0, 6)[0])
    assert not np.array_equal(one[0], draw(1, 5)[0])


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 100),
    frames=st.integers(1, 12),
    gap=st.integers(1, 30),
)
def test_times_of_a_clip(seed, length, frames, gap):
    times = pick_times(np.random.default_rng(seed), length, frames, gap)
    assert len(times) == frames
    assert all(type(t) is int and 0 <= t < length for t in times)
    steps = np.diff(times)
    assert (np.abs(steps) <= gap).all()
    assert (steps >= 0).all() or (steps <= 0).all(), "one direction"
    if length >= frames:
        assert (steps != 0).all(), "a frame is not shown twice where there are enough"


def test_the_development_split_is_excluded_by_default():
    options = command.parser().parse_args(["--davis", "d", "--stills", "s"])
    assert tuple(options.exclude) == DEVELOPMENT


def test_excluded_sequences_are_never_read(data, tmp_path):
    assert [s.name for s in load_davis(data / "davis", ())] == ["ant", "bus", "cat"]
    folder = data / "davis" / "JPEGImages" / "480p" / "bus"
    broken = tmp_path / "davis"
    for path in sorted(data.glob("davis/*/480p/*/*")):
        copy = broken / path.relative_to(data / "davis")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"not an image" if path.parent.name == "bus" else path.read_bytes())
    assert folder.is_dir()
    loaded = load_davis(broken, DEVELOPMENT)
    assert [s.name for s in loaded] == ["ant", "cat"]
    with pytest.raises(InputError, match="damaged"):
        load_davis(broken, ())


def test_frames_and_masks_of_one_time_belong_together(data, clips):
    dataset = Dataset.find(data / "davis")
    images, masks = dataset.frames("cat")
    (cat,) = (s for s in clips.videos if s.name == "cat")
    for t, frame in enumerate(images.frames()):
        np.testing.assert_array_equal(cat.frames[t], frame.image)
        np.testing.assert_array_equal(cat.masks[t], np.asarray(Image.open(masks[t])))


def test_masks_that_are_too_small_are_an_error_and_not_an_endless_search(clips):
    tiny = dataclasses.replace(clips.videos[0], masks=[np.zeros((96, 144), np.uint8)] * 4)
    empty = Clips([tiny], [tiny])
    with pytest.raises(InputError, match="empty or tiny"):
        empty.batch(np.random.default_rng(0), SMOKE.phases[0], 0.0)
