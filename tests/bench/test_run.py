"""`bench/run.py` from end to end, in processes of its own; no time is asserted."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

from bench import cases, harness, report, run
from bench.cases import Case
from bench.stages import OTHER, STAGES, measure, stage_of_nodes, wrapped
from bench.subjects import network_of, prefill
from bench.worker import Clip
from engine import Segmenter
from engine.weights import FOLDER, find, graph_path

MODEL = "mobilevos-mobilenetv2"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A small run of everything."""
    out = tmp_path_factory.mktemp("bench")
    options = ["--models", f"{MODEL},mobilevos-resnet18", "--backends", "reference,cpu,tensorrt"]
    options += ["--sizes", "32", "--frames", "12", "--clips", "short,prefilled,long"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "available", lambda *_: [MODEL])
        assert run.main([*options, "--threads", "1", "--out", str(out)]) == 0
    return out, report.read(out / run.RESULTS)


@pytest.mark.slow
def test_every_row_has_its_figures(results):
    rows = results[1].measured()
    assert {(r["backend"], r["memory"]) for r in rows} == {
        (b, m) for b in ("reference", "cpu") for m in ("finite", "infinite")
    }
    for row in rows:
        assert row["model"] == MODEL and len(row["model_hash"]) == 12
        assert row["fps_low"] <= row["fps"] <= row["fps_high"]
        assert row["p50_ms"] <= row["p90_ms"] <= row["max_ms"] and row["p99_ms"] is None
        assert row["peak_mb"] >= max(mb for _, mb in row["memory_mb"]) > 50
        assert row["cold_start_s"] > 0 and (row["width"], row["height"]) == (56, 32)
    by_clip = {clip: results[1].measured(clip) for clip in ("short", "prefilled 10x", "long")}
    assert [len(v) for v in by_clip.values()] == [4, 4, 4]
    assert [by_clip[c][0]["frames"] for c in by_clip] == [11, 20, 119]
    assert {r["first_frame"] for r in by_clip["prefilled 10x"]} == {121}
    for row in by_clip["short"]:
        assert row["iou"] == 1 if row["backend"] == "reference" else row["iou"] >= 0.99
        assert row["command_fps"] > 0 and row["command_step_fps"] > 0
    finite = [r for r in rows if r["memory"] == "finite" and r["clip"] == "short"]
    infinite = [r for r in rows if r["memory"] == "infinite" and r["clip"] == "long"]
    assert [r for r in rows if "stages" in r] == sorted(finite + infinite, key=rows.index)
    for row in finite + infinite:
        missing = {"mask_head"} if row["backend"] == "reference" else set()
        assert set(row["stages"]) == {*STAGES, OTHER} - missing


@pytest.mark.slow
def test_what_cannot_run_is_listed_with_the_reason(results):
    rows = [r for r in results[1].rows if r["status"] != harness.MEASURED]
    assert {r["status"] for r in rows if r["model"] == "mobilevos-resnet18"} >= {
        "absent: no weights; --random-weights measures its speed without them"
    }
    assert {r["backend"] for r in rows} >= {"tensorrt"}
    assert all(r["status"].startswith("absent: ") and len(r["status"]) > 15 for r in rows)


def test_a_network_without_an_int8_graph_is_absent_and_has_not_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "status", lambda: {"cpu": "", "cpu-int8": "", "reference": ""})
    case = Case(MODEL, "cpu-int8", "finite", 1, 32, str(FOLDER), False)
    assert cases.why_not(case) == ""
    for path in find(MODEL):
        shutil.copy(path, tmp_path)
    without = dataclasses.replace(case, weights=str(tmp_path))
    assert "no int8 graph" in cases.why_not(without)
    assert cases.why_not(dataclasses.replace(without, backend="cpu")) == ""
    monkeypatch.setattr(cases, "status", lambda: {"cpu-int8": "no VNNI"})
    assert cases.why_not(without) == "no VNNI", "what cannot be mended is said first"


@pytest.mark.slow
def test_results_are_told_in_full(results):
    out, told = results
    assert {"cpu", "gpu", "threads", "git", "versions"} <= told.conditions.keys()
    assert told.conditions["command"].startswith(f"python bench/run.py --models {MODEL},")
    table = (out / "results.md").read_text()
    assert f"| {MODEL} | cpu | infinite | prefilled 10x | 1 × 32 |" in table
    assert "10× over 1×" in table and "last tenth's FPS over the first's" in table
    for name in ("fps", "memory", "stages"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_prefilled_memory_has_the_size_of_a_played_one(clip):
    """So its times are those of a long video: as many slots are read, and it can go on."""
    frames, mask = clip
    with Segmenter.load(MODEL, "cpu", size=32, threads=1, memory="infinite") as seg:
        seg.start(frames[0], mask)
        for frame in frames[1:28]:
            seg.step(frame)
        played = (seg._memory.table() >= 0).sum()
        seg.start(frames[0], mask)
        for frame in frames[1:9]:
            seg.step(frame)
        prefill(seg, 28)
        assert (seg._memory.table() >= 0).sum() == played == 7
        keys = seg.state_dict()["keys"]
        assert np.array_equal(keys[2], keys[4]) and keys[2].any(), "kept frames repeat in turn"
        slots = []
        for frame in frames[9:12]:
            assert seg.step(frame).shape == mask.shape
            slots.append(len(seg.state_dict()["keys"]) - len(keys))
        assert slots == [0, 0, 1], "the 31st frame stays, as it would"
    with Segmenter.load(MODEL, "cpu", size=32, threads=1) as finite:
        finite.start(frames[0], mask)
        before = finite.state_dict()["keys"].shape
        prefill(finite, 10_000)
        assert finite.state_dict()["keys"].shape == before


def test_each_weight_belongs_to_its_stage():
    import onnx

    graph = onnx.load(graph_path(MODEL), load_external_data=False).graph
    stages = stage_of_nodes(str(graph_path(MODEL)))
    convolutions = [n for n in graph.node if n.op_type == "Conv"]
    assert len(convolutions) > 100
    for node in convolutions:
        assert stages[node.output[0]] == node.input[1].removeprefix("model.").split(".")[0]
    owner = {name: stages[node.output[0]] for node in graph.node for name in node.output}
    assert owner["key"] == "encode_query" and owner["value"] == "encode_value"
    assert owner["probabilities"] == "decode" and owner["mask"] == "mask_head"
    assert owner["image"] == "preprocess"
    softmax = {stages[n.output[0]] for n in graph.node if n.op_type == "Softmax"}
    assert softmax == {"read_memory"}


def test_timers_leave_the_network_as_it_was(clip):
    frames, mask = clip
    with Segmenter.load(MODEL, "reference", size=32, threads=1) as seg:
        seg.start(frames[0], mask)
        model = network_of(seg)
        before = dict(model.__dict__), dict(seg._backend.__dict__)
        with wrapped(seg._backend, model) as spent:
            seg.step(frames[1])
        assert set(spent) == {
            "preprocess", "encode_query", "read_memory", "decode", "encode_value",
        }  # fmt: skip
        assert (model.__dict__, seg._backend.__dict__.keys()) == (before[0], before[1].keys())


def test_a_profile_leaves_the_video_alone(clip):
    frames, mask = clip
    with Segmenter.load(MODEL, "cpu", size=32, threads=1) as seg:
        seg.start(frames[0], mask)
        before = seg.state_dict()
        seen = []

        def drive(other, count):
            seen.append(other is seg)
            return [other.step(frames[1 + i]).sum() * 0 + 5.0 for i in range(count)]

        spent, how = measure(Case(MODEL, "cpu", "finite", size=32), seg, 1, drive, 2)
        assert how == "ONNX Runtime's profile" and seen == [False]
        assert all(spent[stage] > 0 for stage in STAGES)
        after = seg.state_dict()
        assert all(before[k].tobytes() == after[k].tobytes() for k in before)  # NaN, too


def test_a_clip_is_read_and_not_mapped(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 8, 12, 3), np.uint8)
    np.save(tmp_path / "clip.npy", frames)
    clip = Clip(tmp_path / "clip.npy")
    for i in (4, 0, 2):
        np.testing.assert_array_equal(clip[i], frames[i])
    assert len(clip) == 5
    maps = Path("/proc/self/maps")
    assert not maps.is_file() or "clip.npy" not in maps.read_text(), "it counts to our memory"


def test_a_worker_that_fails_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "why_not", lambda case: "")
    cases = [Case(MODEL, "cpu", "finite", size=32, weights=str(tmp_path))]
    rows = run.measure(cases, harness.Plan(frames=6), tmp_path / "log")
    assert [r["status"][:40] for r in rows] == [f"failed: ModelError: model '{MODEL}'"[:40]]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--models", "x"], "unknown model 'x'"),
        (["--clips", "short,medium"], "unknown clip 'medium'"),
        (["--frames", "2"], "--frames must be at least 6"),
        (["--rival", "x=nowhere"], "not a checkout of XMem, STCN or Cutie"),
        (["--compare", "none.jsonl", "none.jsonl"], "not a benchmark's results"),
        (["--readme", "none.md"], "not a benchmark's results"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, options, text):
    assert run.main([*options, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and text in told and told.count("\n") == 1


def test_it_runs_as_a_script_from_anywhere(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for script in ("run.py", "roofline.py"):
        told = subprocess.run(
            [sys.executable, str(ROOT / "bench" / script), "--help"],
            capture_output=True, text=True, cwd=tmp_path, env=environment, check=True,
        )  # fmt: skip
        assert "usage: python bench/" in told.stdout


def test_quick_is_smaller():
    parse = run.build_parser().parse_args
    quick, usual, full = (run.make_plan(parse(o)) for o in (["--quick"], [], ["--full"]))
    assert quick.frames < usual.frames and quick.prefilled < usual.prefilled
    assert full.clips == harness.CLIPS and usual.clips == harness.CLIPS[:2]
    cases = run.make_cases(parse(["--full"]))
    assert {c.backend for c in cases} >= {"torch-compile", "torch-tensorrt", "cpu", "reference"}
    assert {"torch-compile"}.isdisjoint(c.backend for c in run.make_cases(parse([])))
    json.dumps(cases[0].key)
