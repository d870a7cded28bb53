"""The slot table: property tests over arbitrary sequences of what can happen to objects."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.memory import Model
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.memory import EVERY, NONE, POLICIES, RECENT, Memory

actions = st.lists(
    st.tuples(
        st.sampled_from(["give", "remove", "turn", "lose"]),
        st.sets(st.integers(1, 12), min_size=1),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(POLICIES), actions)
def test_every_object_reads_the_frames_that_it_should(policy, actions):
    memory, model, most = Memory(policy), Model(policy), 0
    for step, (action, ids) in enumerate(actions):
        if action == "remove":
            for label in ids & set(memory.ids):
                before = list(memory.ids)
                columns = memory.remove(label)
                assert [before[c] for c in columns] == memory.ids
                model.remove(label)
            continue
        given_ids = sorted(ids) if action == "give" else []
        new = [i for i in given_ids if i not in memory.ids]
        before = list(memory.ids)
        columns = memory.add(new)
        assert columns == [*range(len(before)), *[NONE] * len(new)]
        if not memory.ids:
            continue
        assert memory.write not in memory.table(), "a step would read the slot that it writes"
        lost = ids & set(before) if action == "lose" else set()

        # What the frame loop does, in its order.
        model.pool[memory.write] = model.frame + 1
        held = memory.hold(lost)
        if held is not None:
            model.pool[held] = model.pool[memory.last]
        memory.turn()
        kept = memory.keep(given_ids)
        if kept is not None:
            model.pool[kept] = model.pool[memory.last]
        model.write(memory.ids, given_ids, lost)

        assert set(memory.held) == lost
        table = memory.table()
        assert table.dtype == np.int32 and table.max() < memory.used <= memory.slots
        for label, row in zip(memory.ids, table, strict=True):
            assert [model.pool[s] for s in row if s != NONE] == model.frames_of(label)
        most = max(most, len(memory.ids))
        if policy == "finite":
            assert table.shape == (len(memory.ids), 2)
            assert memory.used <= RECENT + 2 * most, "slots that nothing reads are used again"
        else:
            assert memory.used <= RECENT + most + step + 1

        copy = Memory(policy)
        copy.load_state_dict(memory.state_dict())
        assert vars(copy) == vars(memory)


def test_objects_given_together_share_a_slot():
    memory = Memory()
    memory.add([4, 9])
    memory.turn()
    assert memory.keep([4, 9]) == RECENT
    assert memory.used == RECENT + 1


def test_a_new_object_reads_nothing_before_its_first_frame():
    memory = Memory()
    memory.add([7])
    assert memory.table().tolist() == [[NONE, NONE]]


def test_the_pool_of_the_infinite_memory_grows_seldom():
    """Doubling: the copies that growth costs are at most as many as there are slots."""
    memory = Memory("infinite")
    memory.add([1])
    sizes = []
    for frame in range(1000):
        memory.turn()
        memory.keep([1] if frame == 0 else [])
        sizes.append(memory.slots)
    assert memory.used == RECENT + 1000 // EVERY
    assert sizes == sorted(sizes)
    assert sum(sorted(set(sizes))[:-1]) <= sizes[-1], "copied slots"


def test_unknown_policy():
    with pytest.raises(InputError, match="unknown memory 'large'; choose one of: finite, infinite"):
        Memory("large")
