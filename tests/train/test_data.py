"""Training clips: what they are drawn from, and that they depend on seed and step alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers.training import SMOKE
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import engine.train.__main__ as command
from engine.data.davis import Dataset
from engine.errors import InputError
from engine.train import sheet
from engine.train.config import DEVELOPMENT, HELD_OUT, Phase
from engine.train.data import MIN_AREA, Clips, Steps, pick_times, weigh
from engine.train.sources import load_davis, packed


@pytest.mark.parametrize("pairs", [0.0, 1.0])
@pytest.mark.parametrize("static", [0.0, 1.0])
@pytest.mark.parametrize("varied", [0.0, 1.0])
def test_a_batch(clips, pairs, static, varied):
    phase = Phase(until=1, frames=3, supervised=2, static=static, gap=2, pairs=pairs,
                  size=(64, 96), batch=2, composed=varied, zoom=varied, thin=varied,
                  haze=varied)  # fmt: skip
    for step in range(3):
        frames, labels, weights, objects, _ = clips.batch(
            np.random.default_rng([0, step]), phase, 0.5
        )
        assert objects == (2 if pairs else 1)
        assert frames.shape == (2, 3, 64, 96, 3) and frames.dtype == np.uint8
        assert labels.shape == (2, 3, 64, 96) and labels.dtype == np.uint8
        assert frames.std() > 6
        assert (weights[:, 0] == 1).all() and weights[:, 1:].min() >= 1 and weights.max() > 1
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
    assert one.objects == two.objects
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
    assert tuple(options.exclude) == (*DEVELOPMENT, *HELD_OUT)


def test_excluded_sequences_are_never_read(data, tmp_path):
    assert [s.name for s in load_davis([data / "davis"], ())] == ["ant", "bus", "cat"]
    folder = data / "davis" / "JPEGImages" / "480p" / "bus"
    broken = tmp_path / "davis"
    for path in sorted(data.glob("davis/*/480p/*/*")):
        copy = broken / path.relative_to(data / "davis")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"not an image" if path.parent.name == "bus" else path.read_bytes())
    assert folder.is_dir()
    loaded = load_davis([broken], DEVELOPMENT)
    assert [s.name for s in loaded] == ["ant", "cat"]
    with pytest.raises(InputError, match="not a readable image"):
        load_davis([broken], ())


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


def test_packed_sources_are_those_that_were_read(data, tmp_path):
    read = load_davis([data / "davis"], ("bus",))
    for _ in range(2):  # written, then mapped
        videos, stills = packed([data / "davis"], data / "stills", ("bus",), tmp_path)
        assert [v.name for v in videos] == [r.name for r in read] and len(stills) == 2
        for video, want in zip(videos, read, strict=True):
            np.testing.assert_array_equal(video.frames, want.frames)
            np.testing.assert_array_equal(video.masks, want.masks)
            assert [t.area for t in video.things[1]] == [
                (want.masks[1] == t.id).sum() for t in video.things[1]
            ]
    (data / "stills" / "set" / "images" / "0.png").touch()
    packed([data / "davis"], data / "stills", ("bus",), tmp_path)
    assert len(list(tmp_path.glob("*.bin"))) == 2, "changed data make a new file"


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_draw_what_the_trainer_would(clips, workers):
    steps = Steps(SMOKE, clips)
    ahead = steps.ahead(2, workers)
    for step in range(2, 5):
        got, want = next(ahead), steps[step]
        np.testing.assert_array_equal(got.frames, want.frames)
        np.testing.assert_array_equal(got.labels, want.labels)
        assert got.objects == want.objects


def test_contours_gaps_and_thin_parts_weigh_more():
    labels = np.zeros((64, 96), np.uint8)
    labels[10:50, 10:40] = labels[10:50, 46:80] = 1  # a gap of six pixels
    labels[50:62, 20:22] = 1  # a thin part
    weights = weigh(labels, 1)
    assert weights[30, 25] == weights[5, 90] == 1, "inside and far away"
    assert weights[30, 10] == weights[30, 9] == 3, "the contour"
    assert weights[30, 42] >= 4, "the gap"
    assert weights[57, 21] >= 4, "the thin part"


def test_a_sheet_of_clips(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sheet, "RUNS", tmp_path)
    options = [
        "--config",
        "smoke",
        "--davis",
        str(data / "davis"),
        "--stills",
        str(data / "stills"),
    ]
    assert sheet.main([*options, "--out", str(tmp_path / "clips.png")]) == 0
    with Image.open(tmp_path / "clips.png") as picture:
        assert picture.size == (2 * 3 * 96, 12 * 64)  # two columns of twelve clips of three frames
        assert np.asarray(picture).std() > 20
    assert sheet.main([*options, "--out", str(tmp_path / "no" / "clips.png")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: cannot write")
