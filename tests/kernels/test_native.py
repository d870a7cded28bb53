"""The C library: configured, built and tested as CMakeLists.txt says, for two architectures."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT


@pytest.mark.build
@pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed")
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler is installed")
@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler is installed")
def test_build_and_ctest(tmp_path: Path) -> None:
    # sm_86 runs on newer minor versions too; sm_90 on itself alone, and it needs opted-in memory.
    options = [f"-DPython3_EXECUTABLE={sys.executable}", "-DMVOS_TARGETS=sm_86,sm_90"]
    run("cmake", "-S", str(ROOT), "-B", str(tmp_path), *options, "-DCMAKE_C_FLAGS=-Werror")
    run("cmake", "--build", str(tmp_path))
    report = run("ctest", "--test-dir", str(tmp_path), "--output-on-failure")
    passed = re.search(r"100% tests passed, 0 tests failed out of (\d+)", report)
    assert passed, report
    assert passed.group(1) == "4"


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
