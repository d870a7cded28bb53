"""Three hundred damaged inputs, the same in every run: see `torture/run.py`, which makes others."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks")]


def test_damaged_inputs_end_in_order(tmp_path):
    """No traceback, signal, hang or gigabytes; an error is one line with exit code 2 or 3.

    In a process of its own: its forks have a limit on their address space, and no other threads.
    """
    out = tmp_path / "told.json"
    script = ROOT / "tests" / "torture" / "run.py"
    options = ["--only", "fuzz", "--seed", "0", "--most", "300", "--minutes", "20", "--out", out]
    run = subprocess.run(
        [sys.executable, script, *options], capture_output=True, text=True, check=False
    )
    told = json.loads(out.read_text())
    assert run.returncode == 0 and told["tried"] == {"fuzz": 300} and told["found"] == []
