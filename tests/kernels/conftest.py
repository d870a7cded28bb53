"""Fixtures of the kernels' tests: Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Iterator

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
