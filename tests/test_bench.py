"""The benchmark runs and says under which conditions; no time is asserted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

RUN = Path(__file__).parent.parent / "bench" / "run.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_run", RUN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_backends_by_turns(bench, tmp_path, capsys):
    assert bench.main(["--frames", "3", "--size", "64", "--out", str(tmp_path)]) == 0
    conditions, cpu, _, reference = rows(tmp_path / "short.jsonl")
    assert {"cpu", "threads", "size", "onnxruntime"} <= set(conditions["conditions"])
    assert (cpu["backend"], reference["backend"]) == ("cpu", "reference")
    for row in (cpu, reference):
        assert row["frames"] == 3 and row["fps"] > 0 and row["status"] == "measured here"
        assert row["p99_ms"] is None, "three samples have no 99th percentile"
    assert "| reference | short | 3 |" in capsys.readouterr().out


def test_absent_backend_is_listed_with_the_reason(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "status", lambda: {"cpu": "", "reference": "torch not installed"})
    options = ["--frames", "1", "--size", "64", "--backends", "cpu,reference"]
    bench.main([*options, "--out", str(tmp_path)])
    assert rows(tmp_path / "short.jsonl")[2]["status"] == "absent: torch not installed"


def test_back_and_forth(bench):
    assert list(bench.back_and_forth(["a", "b", "c"], 9)) == list("abcbabcba")


def test_long_run_writes_a_plot(bench, tmp_path, monkeypatch):
    demo = bench.demo_frames
    monkeypatch.setattr(bench, "demo_frames", lambda count: demo(3))
    options = ["--long", "--size", "32", "--backends", "cpu", "--out", str(tmp_path)]
    assert bench.main(options) == 0
    _, row = rows(tmp_path / "long.jsonl")
    assert row["frames"] == 60 and "memory_growth" in row
    assert (tmp_path / "long.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_model_is_one_line(bench, tmp_path, capsys):
    assert bench.main(["--model", "x", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: unknown model 'x'")
