"""Rows by turns, medians, and intervals that know how few independent samples there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Key = TypeVar("Key")
TURN = 5  # frames that a row is timed for before it is the next one's turn
ENOUGH = 300  # samples below which a 99th percentile says nothing
RESAMPLES = 2000


def by_turns(
    subjects: Sequence[Key], frames: int, run: Callable[[Key, int], None], turn: int = TURN
) -> None:
    """Let ``run(subject, n)`` do ``frames`` frames of every subject, ``turn`` at a time.

    So a machine whose speed drifts hits all alike, and turn i of one row is a fair partner of
    turn i of another. Every other round goes backwards: nobody always runs after the same one.
    """
    for index, begin in enumerate(range(0, frames, turn)):
        for subject in subjects if index % 2 == 0 else reversed(subjects):
            run(subject, min(turn, frames - begin))


def split(times: Sequence[float], turn: int = TURN) -> F64:
    """Times as [turns, turn]; a shorter last turn is filled up with NaN."""
    count = -(-len(times) // turn)
    table = np.full(count * turn, np.nan)
    table[: len(times)] = times
    return table.reshape(count, turn)


def bootstrap(turns: F64, draws: NDArray[np.intp]) -> F64:
    """Medians of the turns [n, t] drawn by ``draws`` [resamples, n]: [resamples]."""
    result: F64 = np.nanmedian(turns[draws].reshape(len(draws), -1), axis=1)
    return result


def _draws(count: int, seed: int) -> NDArray[np.intp]:
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


def median_interval(times: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval (percentiles).

    Whole turns are drawn, not single frames: frames of one turn share what the machine was doing
    then. The interval covers the noise within a run, not the drift between two.
    """
    turns = split(times)
    medians = bootstrap(turns, _draws(len(turns), 0))
    low, high = np.percentile(medians, (2.5, 97.5))
    return float(np.nanmedian(turns)), float(low), float(high)


def ratio_interval(
    times: Sequence[float], base: Sequence[float], paired: bool
) -> tuple[float, float, float]:
    """Speed over base's speed, median(base) / median(times), with its 95 % bootstrap interval.

    paired: both were timed by turns in one run; turns are then drawn together, which cancels drift.
    """
    ours, theirs = split(times), split(base)
    first = _draws(len(ours), 0)
    second = first if paired and len(ours) == len(theirs) else _draws(len(theirs), 1)
    ratios = bootstrap(theirs, second) / bootstrap(ours, first)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(np.nanmedian(theirs) / np.nanmedian(ours)), float(low), float(high)


def summary(times: Sequence[float]) -> dict[str, Any]:
    """The figures of a row from its frames' times in ms. ``fps`` is that of the median frame."""
    median, low, high = median_interval(times)
    p50, p90, p99 = np.percentile(times, (50, 90, 99))
    tenth = len(times) // 10
    return {
        "frames": len(times),
        "fps": round(1e3 / median, 3),
        "fps_low": round(1e3 / high, 3),
        "fps_high": round(1e3 / low, 3),
        "fps_mean": round(1e3 / float(np.mean(times)), 3),
        "p50_ms": round(float(p50), 2),
        "p90_ms": round(float(p90), 2),
        "p99_ms": round(float(p99), 2) if len(times) >= ENOUGH else None,
        "max_ms": round(float(np.max(times)), 2),
        "last_tenth_over_first": (
            round(float(np.median(times[:tenth]) / np.median(times[-tenth:])), 3)
            if tenth >= TURN
            else None
        ),
        "times_ms": [round(t, 2) for t in times],
    }
