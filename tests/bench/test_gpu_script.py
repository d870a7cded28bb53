"""``bench/gpu.sh`` with a stand-in for Python: what it runs, reports and answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

SCRIPT = ROOT / "bench" / "gpu.sh"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a shell script")


def run(folder: Path, python: str, gpu: bool = True, seconds: int = 600) -> tuple[int, str]:
    (folder / "bench").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "bench")
    for name, body in {"nvidia-smi": f"exit {0 if gpu else 9}", "py": python}.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    bundle = folder / "build" / "bundles" / "m-480x864-k1-fp16-tensorrt-rtx"
    bundle.mkdir(parents=True)
    (bundle / "manifest.json").touch()
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHON": str(folder / "py"),
        "SECONDS_AT_MOST": str(seconds),
    }
    done = subprocess.run(
        ["bash", str(folder / "bench" / "gpu.sh")], env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_every_part_runs_although_one_fails(tmp_path):
    code, text = run(tmp_path, 'case "$*" in *pytest*) echo broken; exit 1;; esac; echo "$*"')
    assert code == 1
    assert text.count("passed in") == 4 and "FAILED with code 1" in text and "broken" in text
    assert "-m engine validate build/bundles/m-480x864-k1-fp16-tensorrt-rtx/" in text
    assert "bench/run.py --quick" in text
    assert (tmp_path / "build" / "gpu" / "tests.txt").read_text() == "broken\n"


def test_all_passed(tmp_path):
    code, text = run(tmp_path, "exit 0")
    assert code == 0 and text.endswith("all passed\n")


def test_it_never_takes_longer_than_it_may(tmp_path):
    code, text = run(tmp_path, "sleep 60", seconds=1)
    assert code == 1 and "stopped after 1 s" in text and "not run" in text


def test_no_gpu_is_one_line(tmp_path):
    code, text = run(tmp_path, "exit 0", gpu=False)
    assert code == 2 and text.startswith("error: no NVIDIA GPU or driver")
