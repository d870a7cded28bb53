"""No kernel reads or writes outside its tensors: every one lies against an unreadable page."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT, guarded


def run(*cases: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, guarded.__file__, *cases]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_nothing_outside_is_touched() -> None:
    cases = [case for case in guarded.CASES if case != "lie"]
    done = run(*cases)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.splitlines() == [f"finished {case}" for case in cases]


@pytest.mark.slow
def test_the_guard_bites() -> None:
    """Told of one position more than there is, the kernel reads past the end and dies."""
    done = run("lie")
    assert done.returncode == -signal.SIGSEGV, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
