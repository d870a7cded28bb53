"""Fixtures of the kernels' tests: the interpreter's worker, fresh seeds that failures show."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import numpy as np
import pytest
from helpers.interpreted import Interpreter

# Set for a whole run, it would stop this process from compiling; the interpreter has its own.
os.environ.pop("TRITON_INTERPRET", None)


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    """Triton's interpreter, in its own process."""
    worker = Interpreter()
    yield worker
    worker.close()


@pytest.fixture
def rng() -> np.random.Generator:
    """A fresh seed for each test, shown if it fails; MVOS_SEED repeats one."""
    seed = int(os.environ.get("MVOS_SEED") or secrets.randbits(32))
    print(f"to repeat: MVOS_SEED={seed}")
    return np.random.default_rng(seed)
