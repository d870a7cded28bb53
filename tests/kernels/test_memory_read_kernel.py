"""The fused memory read in Triton's interpreter against the reference in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.interpreted import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.memory_read.reference import memory_read_reference

HALF, SINGLE = np.float16, np.float32
ROUNDING = {HALF: 2.0**-11, SINGLE: 2.0**-24}
# Tiles small enough for the interpreter, and for several of them to be needed: the fields of a
# ReadTiling but the last, the number of splits. 128 columns: two objects of 64 share a block.
NARROW, SHARED = (16, 16, 64, 4, 2), (16, 16, 128, 4, 2)

Case = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def make(
    rng: np.random.Generator,
    dtype: type,
    positions: int,
    *,
    capacity: int = 3,
    objects: int = 1,
    reads: int = 2,
    key_dim: int = 64,
    value_dim: int = 64,
) -> Case:
    """Random query, keys, values, and a table in which some entries are −1."""
    query = rng.standard_normal((positions, key_dim)).astype(dtype)
    keys = rng.standard_normal((capacity, positions, key_dim)).astype(dtype)
    values = rng.standard_normal((capacity, objects, positions, value_dim)).astype(dtype)
    slots = rng.integers(-1, capacity, (objects, reads)).astype(np.int32)
    return query, keys, values, slots


def exact(case: Case) -> np.ndarray:
    """The reference's answer in float64."""
    query, keys, values, slots = (torch.from_numpy(a) for a in case)
    wide = memory_read_reference(query.double(), keys.double(), values.double(), slots)
    return wide.numpy()


def eager(case: Case) -> np.ndarray:
    """The reference's answer in the inputs' own precision."""
    return memory_read_reference(*(torch.from_numpy(a) for a in case)).numpy()


def largest_terms(case: Case) -> float:
    """max Σ|terms| of a score: (2·|m|·|q| + |m|²)/√Ck, with absolute values inside the sums."""
    query, keys = (np.abs(a.astype(np.float64)) for a in case[:2])
    flat = keys.reshape(-1, keys.shape[2])
    return float((2 * query @ flat.T + np.square(flat).sum(1)).max() / keys.shape[2] ** 0.5)


def bound(case: Case) -> float:
    """An upper bound of the kernel's error, from the precision alone: no run can exceed it.

    Each score is a sum of Ck products and the key's norm in float32: |δS| ≤ (Ck + 8)·u·Σ|terms|.
    The weights, exp(S), then err by a factor 1 ± 2|δS|, numerator and denominator alike. The
    weights are rounded to the inputs' type for the second product, ≤ 2⁻²⁵ each where they are
    subnormal in float16, and so is the result.
    """
    query, values, slots = case[0], case[2], case[3]
    key_dim, count = query.shape[1], slots.shape[1] * query.shape[0]
    unit, own = ROUNDING[SINGLE], ROUNDING[query.dtype.type]
    score = (key_dim + 8) * unit * largest_terms(case)
    weights = 4 * score + 2 * (count + 8) * unit + 2 * own
    if query.dtype == HALF:
        weights += count * 2.0**-25
    return float(np.abs(values.astype(np.float64)).max() * weights)


def check(result: np.ndarray, case: Case) -> float:
    """Within the bound everywhere, and on the whole no worse than PyTorch in the same type."""
    wanted = exact(case)
    assert np.isfinite(result).all(), "some of the NaN that poisoned the output is left"
    error = np.abs(result.astype(np.float64) - wanted)
    assert error.max() <= bound(case)
    rms = float(np.sqrt(np.square(error).mean()))
    other = float(np.sqrt(np.square(eager(case).astype(np.float64) - wanted).mean()))
    # PyTorch may be lucky where there are few queries: allow one rounding of the largest terms.
    units = ROUNDING[case[0].dtype.type] + ROUNDING[SINGLE] * largest_terms(case)
    assert rms <= 1.5 * other + units * float(np.abs(case[2]).max())
    return float(error.max())


@pytest.mark.parametrize("dtype", [HALF, SINGLE])
@pytest.mark.parametrize(
    ("objects", "reads", "key_dim", "value_dim", "plan"),
    [
        (1, 2, 64, 64, (*NARROW, 1)),
        (1, 2, 64, 64, (*NARROW, 3)),
        (1, 2, 64, 64, None),
        (2, 2, 64, 64, (*SHARED, 2)),
        (3, 1, 32, 64, (*SHARED, 1)),
        (1, 5, 128, 128, (*SHARED, 4)),
        (2, 3, 64, 192, (*NARROW, 2)),
        pytest.param(1, 2, 64, 512, (*SHARED, 16), marks=pytest.mark.slow),
    ],
)
def test_agrees_with_float64(
    interpreter: Interpreter,
    rng: np.random.Generator,
    dtype: type,
    objects: int,
    reads: int,
    key_dim: int,
    value_dim: int,
    plan: tuple[int, ...] | None,
) -> None:
    positions = int(rng.integers(1, 60))  # ragged: rarely a multiple of a tile
    case = make(
        rng,
        dtype,
        positions,
        objects=objects,
        reads=reads,
        key_dim=key_dim,
        value_dim=value_dim,
    )
    error = check(interpreter.memory_read(*case, plan=plan), case)
    print(f"largest error {error:.2e}, bound {bound(case):.2e}")  # shown with pytest -rP


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    half=st.booleans(),
    positions=st.integers(1, 50),
    capacity=st.integers(1, 4),
    objects=st.integers(1, 5),
    reads=st.integers(1, 4),
    shared=st.booleans(),
    splits=st.integers(1, 16),
)
def test_any_shape(
    interpreter: Interpreter,
    seed: int,
    half: bool,
    positions: int,
    capacity: int,
    objects: int,
    reads: int,
    shared: bool,
    splits: int,
) -> None:
    rng = np.random.default_rng(seed)
    case = make(
        rng,
        HALF if half else SINGLE,
        positions,
        capacity=capacity,
        objects=objects,
        reads=reads,
        key_dim=32,
    )
    if shared and objects > 1:
        case[3][1] = case[3][0]  # a group of two with equal rows: one pass for both
    plan = (*(SHARED if shared else NARROW), splits)
    check(interpreter.memory_read(*case, plan=plan), case)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("tile", [NARROW, SHARED])
def test_an_object_without_slots_reads_zeros(
    interpreter: Interpreter, rng: np.random.Generator, tile: tuple[int, ...], splits: int
) -> None:
    case = make(rng, HALF, 21, objects=3)
    case[3][:] = [[-1, -1], [0, 2], [-1, -1]]
    result = interpreter.memory_read(*case, plan=(*tile, splits))
    assert (result[[0, 2]] == 0).all()
    check(result, case)


@pytest.mark.slow
def test_many_slots(interpreter: Interpreter, rng: np.random.Generator) -> None:
    """More than 128, the chunk in which the kernel compares two objects' tables."""
    case = make(rng, SINGLE, 3, capacity=140, objects=2, reads=140, key_dim=32)
    case[3][:] = np.arange(140)
    case[3][1, -1] = 0  # they differ in the last entry alone
    check(interpreter.memory_read(*case, plan=(*SHARED, 3)), case)


@pytest.mark.parametrize("dtype", [HALF, SINGLE])
@pytest.mark.parametrize("magnitude", [100, 1000])
def test_extreme_keys_copy_exactly(
    interpreter: Interpreter, rng: np.random.Generator, dtype: type, magnitude: int
) -> None:
    """Keys so large that |m|² overflows fp16, and every query equal to one key.

    All other scores are lower by thousands, so the affinity is one-hot: an exact copy.
    """
    positions = 37
    query, keys, values, slots = make(rng, dtype, positions)
    sign = rng.choice([-1.0, 1.0], keys.shape)
    keys[:] = (sign * rng.integers(magnitude, 2 * magnitude, keys.shape)).astype(dtype)
    slots[:] = [[2, 0]]
    where = rng.integers(0, 2 * positions, positions)
    query[:] = keys[slots[0]].reshape(-1, keys.shape[2])[where]
    wanted = values[slots[0], 0].reshape(-1, values.shape[3])[where]
    for splits in (1, 4):
        result = interpreter.memory_read(query, keys, values, slots, plan=(*NARROW, splits))
        assert np.array_equal(result[0], wanted)


def test_far_queries_stay_finite(interpreter: Interpreter, rng: np.random.Generator) -> None:
    """Scores of −10⁵ and beyond: the softmax must subtract its maximum before the exponential."""
    query, keys, values, slots = make(rng, HALF, 19)
    slots[:] = [[0, 1]]
    keys += HALF(300)
    values[:] = 1  # any weights that sum to one give one
    for splits in (1, 2):
        result = interpreter.memory_read(query, keys, values, slots, plan=(*NARROW, splits))
        assert np.abs(result.astype(SINGLE) - 1).max() <= 4 * ROUNDING[HALF]


@pytest.mark.parametrize("splits", [1, 2])
def test_a_repeated_slot_changes_nothing(
    interpreter: Interpreter, rng: np.random.Generator, splits: int
) -> None:
    query, keys, values, slots = make(rng, SINGLE, 23)
    slots[:] = [[1, 1]]
    twice = interpreter.memory_read(query, keys, values, slots, plan=(*NARROW, splits))
    once = interpreter.memory_read(query, keys, values, slots[:, :1].copy(), plan=(*NARROW, 1))
    assert np.abs(twice - once).max() <= 2 * bound((query, keys, values, slots))


def test_the_order_of_the_memory_does_not_matter(
    interpreter: Interpreter, rng: np.random.Generator
) -> None:
    query, keys, values, slots = make(rng, SINGLE, 40, reads=3)
    slots[:] = [[0, 1, 2]]
    one = interpreter.memory_read(query, keys, values, slots, plan=(*NARROW, 2))
    order = rng.permutation(40)
    other = interpreter.memory_read(
        query,
        np.ascontiguousarray(keys[:, order]),
        np.ascontiguousarray(values[:, :, order]),
        np.ascontiguousarray(slots[:, ::-1]),
        plan=(*NARROW, 2),
    )
    assert np.abs(one - other).max() <= 2 * bound((query, keys, values, slots))


def test_slot_numbers_past_the_memory_are_skipped(
    interpreter: Interpreter, rng: np.random.Generator
) -> None:
    """On a GPU the table cannot be checked on the host: a corrupt one must not read elsewhere."""
    case = make(rng, SINGLE, 17)
    case[3][:] = [[1, 3]]
    result = interpreter.memory_read(*case, plan=(*NARROW, 2))
    case[3][:] = [[1, -1]]
    check(result, case)
