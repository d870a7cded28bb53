"""The slot table: property tests over arbitrary sequences of adding, correcting and removing."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.memory import NONE, RECENT, Memory

actions = st.lists(
    st.tuples(st.sampled_from(["give", "remove", "turn"]), st.sets(st.integers(1, 12), min_size=1)),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(actions)
def test_every_object_reads_the_frame_where_it_was_last_given(actions):
    memory, frame, most = Memory(), 0, 0
    written = {0: NONE, 1: NONE}  # slot → frame that it holds
    truth: dict[int, int] = {}  # id → frame where it was given
    for action, ids in actions:
        if action == "remove":
            for label in ids & set(memory.ids):
                before = list(memory.ids)
                columns = memory.remove(label)
                assert [before[c] for c in columns] == memory.ids
                del truth[label]
            continue
        given_ids = sorted(ids) if action == "give" else []
        new = [i for i in given_ids if i not in memory.ids]
        before = list(memory.ids)
        columns = memory.add(new)
        assert columns == [*range(len(before)), *[NONE] * len(new)]
        for row in memory.table():
            assert memory.write not in row, "a step would read the slot that it writes"
        frame += 1
        written[memory.write] = frame
        memory.turn()
        if given_ids:
            slot = memory.anchor(given_ids)
            in_use = {a for i, a in memory.anchors.items() if i not in given_ids}
            assert slot not in in_use, "the anchor of another object was taken"
            written[slot] = frame
            truth.update(dict.fromkeys(given_ids, frame))

        assert len(set(memory.ids)) == len(memory.ids)
        assert set(memory.ids) == set(truth)
        table = memory.table()
        assert table.dtype == np.int32
        assert table.shape == (len(memory.ids), 2)
        for label, (anchor, last) in zip(memory.ids, table, strict=True):
            assert written[anchor] == truth[label]
            assert written[last] == frame
            assert anchor < memory.slots
        most = max(most, len(memory.ids))
        assert memory.slots <= RECENT + most, "slots of dropped anchors are used again"


def test_objects_given_together_share_a_slot():
    memory = Memory()
    memory.add([4, 9])
    memory.turn()
    assert memory.anchor([4, 9]) == RECENT
    assert memory.slots == RECENT + 1


def test_a_new_object_reads_nothing_before_its_first_frame():
    memory = Memory()
    memory.add([7])
    assert memory.table().tolist() == [[NONE, NONE]]
