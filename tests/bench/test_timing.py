"""The benchmark's statistics, turns and cases, on figures that are known."""

from __future__ import annotations

import numpy as np
import pytest

from bench.cases import demo_clip, expand, lap, strips
from bench.timing import by_turns, median_interval, ratio_interval, summary
from engine.errors import InputError, ModelError


def test_turns_give_everyone_the_same_frames_in_fair_order():
    log = []
    by_turns(["a", "b"], 12, lambda who, n: log.append((who, n)), turn=5)
    assert log == [("a", 5), ("b", 5), ("b", 5), ("a", 5), ("a", 2), ("b", 2)]


def test_median_interval_holds_the_median_and_is_the_same_every_time():
    times = np.random.default_rng(0).normal(100, 5, 60)
    median, low, high = median_interval(times)
    assert median == np.median(times)
    assert 95 < low < median < high < 105 and high - low > 0.5
    assert median_interval(times) == (median, low, high)


def test_frames_of_one_turn_are_no_independent_samples():
    """Ten turns whose frames are all alike say no more than ten numbers do."""
    turns = np.random.default_rng(1).normal(100, 5, 10)
    _, low, high = median_interval(np.repeat(turns, 5))
    _, low_apart, high_apart = median_interval(np.random.default_rng(1).normal(100, 5, 50))
    assert high - low > 1.5 * (high_apart - low_apart)


def test_pairs_cancel_the_machines_drift():
    generator = np.random.default_rng(2)
    drift = np.repeat(np.linspace(1, 3, 12), 5)
    slow, fast = (base * drift * generator.normal(1, 0.01, 60) for base in (100, 50))
    ratio, low, high = ratio_interval(fast, slow, paired=True)
    assert low < ratio < high and low > 1.95 and high < 2.05
    _, low_apart, high_apart = ratio_interval(fast, slow, paired=False)
    assert high_apart - low_apart > 10 * (high - low)


def test_summary():
    times = [*[10.0] * 150, *[20.0] * 149]
    told = summary(times)
    assert told["p99_ms"] is None and summary([*times, 20.0])["p99_ms"] == 20
    assert told["frames"] == 299 and told["fps"] == 100 and told["max_ms"] == 20
    assert told["fps_low"] == 50 and told["fps_high"] == 100
    assert told["last_tenth_over_first"] == 0.5
    assert summary(times[:40])["last_tenth_over_first"] is None, "four frames are no tenth"


def test_the_clip_plays_forwards_and_backwards():
    assert [lap(i, 3) for i in range(9)] == [0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert lap(7, 1) == 0


def test_strips_are_equal_and_in_order():
    mask = np.zeros((10, 40), np.uint8)
    mask[2:8, 5:35] = 7
    ids = strips(mask, 3)
    assert np.bincount(ids.ravel())[1:].tolist() == [60, 60, 60]
    assert (np.diff(ids[3, 5:35].astype(int)) >= 0).all()
    assert ((ids > 0) == (mask > 0)).all()
    with pytest.raises(InputError, match="cannot be cut into 40"):
        strips(mask, 40)


def test_demo_clip_has_even_sides_and_the_objects():
    frames, mask = demo_clip(2, 75, 2)
    assert frames.shape == (2, 74, 132, 3) and mask.shape == (74, 132)
    assert np.unique(mask).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "error", "text"),
    [
        ((["x"], ["cpu"], ["finite"]), ModelError, "unknown model 'x'"),
        ((["mobilevos-resnet18"], ["y"], ["finite"]), InputError, "unknown backend 'y'"),
        ((["mobilevos-resnet18"], ["cpu"], ["z"]), InputError, "unknown memory 'z'"),
    ],
)
def test_names_that_do_not_exist(names, error, text):
    with pytest.raises(error, match=text):
        list(expand(*names, [1], [240]))
