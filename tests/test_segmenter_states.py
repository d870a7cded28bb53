"""The frame loop under arbitrary sequences of calls, on a backend that remembers who is who.

Its "network" writes the number of the frame and of the object into the memory. So each step tells
which frames every object reads, and whether they are its own.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from helpers.memory import Model
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from engine.errors import BackendError, InputError, StateError
from engine.geometry import Geometry
from engine.memory import NONE, POLICIES
from engine.runtime.base import StepInput
from engine.segmenter import Segmenter

SIZE = (32, 64)
FRAME = np.zeros((*SIZE, 3), np.uint8)
ROOM = 5  # objects that the backend takes
ids = st.sets(st.integers(1, 7), min_size=1, max_size=4)


def stripes(labels: Sequence[int]) -> np.ndarray:
    """A mask [H, W] with a column of four pixels for each id."""
    mask = np.zeros(SIZE, np.uint8)
    for label in labels:
        mask[:, 4 * label : 4 * label + 4] = label
    return mask


class Book:
    """A backend: keys [S, N, 1] are frames, values [S, K, N, 1] frame and id as 1000·frame + id."""

    name, on_gpu = "book", False
    failing = False  # whether the next step raises
    losing: frozenset[int] | set[int] = frozenset()  # ids that the next frame loses

    def open(self, geometry: Geometry) -> None:
        self.geometry, self.frame = geometry, 0
        self.tokens = geometry.tokens
        self.keys, self.values = np.zeros((0, self.tokens, 1)), np.zeros((0, 0, self.tokens, 1))
        self.read: dict[int, list[int]] = {}

    def arrange(self, columns: Sequence[int], slots: int) -> None:
        if len(columns) > ROOM:
            raise BackendError(f"there is room for {ROOM} objects")
        keys, values = self.keys, self.values
        both = min(slots, len(keys))
        self.keys = np.full((slots, self.tokens, 1), np.nan)
        self.keys[:both] = keys[:both]
        self.values = np.full((slots, len(columns), self.tokens, 1), np.nan)
        for new, old in enumerate(columns):
            if old != NONE:
                self.values[:both, new] = values[:both, old]

    def expect(self, frame: Any) -> None:
        pass

    def step(self, task: StepInput) -> np.ndarray:
        if self.failing:
            raise RuntimeError("out of order")
        self.frame += 1
        assert task.labels[0] == 0 and len(task.slots) == len(task.labels) - 1
        assert task.write not in task.slots
        self.labels = [int(i) for i in task.labels[1:]]
        self.read = {}
        for column, (label, slots) in enumerate(zip(self.labels, task.slots, strict=True)):
            frames = [int(self.keys[s, 0, 0]) for s in slots if s != NONE]
            own = [int(self.values[s, column, 0, 0]) for s in slots if s != NONE]
            assert own == [1000 * f + label for f in frames], "another object's memory"
            self.read[label] = frames
            self.values[task.write, column] = 1000 * self.frame + label
        self.keys[task.write] = self.frame
        self.given = {i for i, g in zip(self.labels, task.use_given, strict=True) if g}
        if task.given is not None:
            shown = {i for i, plane in zip(self.labels, task.given, strict=True) if plane.any()}
            assert shown == self.given
        return stripes(self.labels)

    def copy(self, source: int, target: int) -> None:
        self.keys[target], self.values[target] = self.keys[source], self.values[source]

    def probabilities(self) -> np.ndarray:
        share = 1 / (len(self.labels) + 1)
        return np.full((len(self.labels) + 1, *self.geometry.padded), share, np.float32)

    def scores(self) -> np.ndarray:
        """An object that is lost has no pixels left."""
        found = [(0.0, 0.0) if i in self.losing else (0.5, 0.45) for i in self.labels]
        return np.array(found, np.float32)

    def export_memory(self) -> tuple[np.ndarray, np.ndarray]:
        return self.keys.astype(np.float32), self.values.astype(np.float32)

    def import_memory(self, keys: np.ndarray, values: np.ndarray) -> None:
        self.keys, self.values = keys.astype(float), values.astype(float)
        self.frame = int(np.nanmax(keys))

    def close(self) -> None:
        pass


class Calls(RuleBasedStateMachine):
    """Every call that a user can make, and what must be true after it."""

    @initialize(policy=st.sampled_from(POLICIES))
    def load_segmenter(self, policy: str) -> None:
        self.policy, self.saved = policy, None
        self.new()

    def new(self) -> None:
        self.backend = Book()
        self.seg = Segmenter(self.backend, "m", "h", size=64, memory=self.policy)
        self.forget()

    def forget(self) -> None:
        self.model: Model | None = None
        self.ids: list[int] = []
        self.lost: set[int] = set()
        self.counts: Counter[int] = Counter()
        self.steps = 0

    def play(self, given: set[int], losing: set[int]) -> None:
        """A frame in which the backend finds all objects but ``losing``."""
        assert self.model is not None
        before = list(self.ids)
        self.ids += sorted(given - set(before))
        reads = {i: self.model.frames_of(i) for i in before}
        self.backend.losing = losing
        mask = stripes(sorted(given)) if given else None
        got = self.seg.step(FRAME, mask) if self.model.frame else self.seg.start(FRAME, mask)
        if not self.ids:
            assert not got.any()
            return
        assert np.array_equal(got, stripes(self.ids))
        assert self.backend.read == reads | {i: [] for i in self.ids if i not in before}
        assert self.backend.given == given
        self.lost = (losing & set(self.ids)) - given
        self.counts.update(self.lost)
        self.model.write(self.ids, given, self.lost)
        self.steps += 1

    @rule(given=ids)
    def start(self, given: set[int]) -> None:
        self.forget()
        self.model = Model(self.policy)
        self.play(given, set())

    @precondition(lambda self: self.model)
    @rule()
    def step(self) -> None:
        self.play(set(), set())

    @precondition(lambda self: self.model)
    @rule(losing=ids)
    def lose(self, losing: set[int]) -> None:
        self.play(set(), losing)

    @precondition(lambda self: self.model)
    @rule(given=ids, losing=ids)
    def give(self, given: set[int], losing: set[int]) -> None:
        """Objects are added, and those that are known corrected; too many change nothing."""
        if len(given | set(self.ids)) > ROOM:
            with pytest.raises(BackendError, match="room for 5"):
                self.seg.step(FRAME, stripes(sorted(given)))
        else:
            self.play(given, losing)

    @precondition(lambda self: self.model)
    @rule(label=st.integers(1, 7))
    def remove(self, label: int) -> None:
        if label not in self.ids:
            with pytest.raises(InputError, match=f"no object {label} to remove"):
                self.seg.remove(label)
            return
        self.seg.remove(label)
        self.ids.remove(label)
        self.model.remove(label)
        self.lost.discard(label)
        del self.counts[label]

    @precondition(lambda self: self.model)
    @rule(bad=st.sampled_from(["frame", "dtype", "mask", "empty"]))
    def misuse(self, bad: str) -> None:
        """What is refused changes nothing."""
        frame = {"frame": FRAME[1:], "dtype": FRAME.astype(float)}.get(bad, FRAME)
        mask = {"mask": stripes([1])[1:], "empty": stripes([])}.get(bad)
        with pytest.raises(InputError):
            self.seg.step(frame, mask)

    @precondition(lambda self: self.ids)
    @rule(given=st.none() | ids)
    def fail(self, given: set[int] | None) -> None:
        """A backend that raises changes nothing, whether or not objects were to be added."""
        self.backend.failing = len((given or set()) | set(self.ids)) <= ROOM
        with pytest.raises(BackendError):
            self.seg.step(FRAME, None if given is None else stripes(sorted(given)))
        self.backend.failing = False

    @precondition(lambda self: self.ids)
    @rule()
    def save(self) -> None:
        told = (self.model, self.ids, self.lost, self.counts)
        self.saved = copy.deepcopy((self.seg.state_dict(), told))

    @precondition(lambda self: self.saved)
    @rule(anew=st.booleans())
    def restore(self, anew: bool) -> None:
        """Into this segmenter, or into a new one as after a restart."""
        if anew:
            self.new()
        state, told = copy.deepcopy(self.saved)
        self.seg.load_state_dict(state)
        self.model, self.ids, self.lost, self.counts = told
        self.steps = 0

    @precondition(lambda self: self.saved)
    @rule(name=st.sampled_from(["model_hash", "size", "policy", "tta"]))
    def restore_another(self, name: str) -> None:
        with pytest.raises(InputError, match="another model, size, memory or tta"):
            self.seg.load_state_dict(self.saved[0] | {name: np.array("x")})

    @rule(closed=st.booleans())
    def end(self, closed: bool) -> None:
        if not closed:
            self.seg.reset()
            self.forget()
            return
        self.seg.close()
        self.seg.close()
        for call in (lambda: self.seg.step(FRAME), lambda: self.seg.remove(1)):
            with pytest.raises(StateError, match="is closed"):
                call()
        self.new()

    @precondition(lambda self: not self.model)
    @rule()
    def too_early(self) -> None:
        for call in (lambda: self.seg.step(FRAME), self.seg.state_dict):
            with pytest.raises(StateError, match=r"call start\(frame, mask\) first"):
                call()

    @invariant()
    def it_tells_the_truth(self) -> None:
        if not hasattr(self, "ids"):
            return
        assert self.seg.ids == tuple(self.ids)
        assert self.seg.lost == tuple(i for i in self.ids if i in self.lost)
        assert self.seg.lost_frames == {i: self.counts[i] for i in self.ids}
        assert self.seg.stats.frames == self.steps
        if self.ids and self.steps and self.backend.labels == self.ids:
            assert self.seg.probabilities.shape == (len(self.ids) + 1, *SIZE)


Calls.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
test_any_sequence_of_calls = Calls.TestCase
