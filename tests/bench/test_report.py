"""What the benchmark tells of its rows: tables, comparison, the paper's figures, docs."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from bench import compare, plots, published, report
from bench.accuracy import pooled_iou, score
from bench.harness import MEASURED
from bench.report import BEGIN, END, Results
from bench.roofline import analysis, main
from bench.timing import summary
from engine.errors import InputError
from kernels.cards import Card

MODELS = ("mobilevos-resnet18", "mobilevos-mobilenetv2")
CONDITIONS = {
    "date": "2026-01-02T03:04:05+00:00", "cpu": "A CPU, 2 cores", "gpu": "none",
    "command": "python bench/run.py --quick", "threads": 2,
    "load_average": 0.1, "system": "Linux", "git": "abc", "clip_frames": 60,
    "prefilled_frames": 20, "versions": {"python": "3"},
}  # fmt: skip


def row(model, backend, memory, clip, ms, seed=0, frames=60, first=1, **more):
    times = np.random.default_rng(seed).normal(ms, ms / 50, frames)
    return {
        "model": model, "backend": backend, "memory": memory, "clip": clip, "objects": 1,
        "size": 240, "width": 426, "height": 240, "model_hash": "0" * 12, "cold_start_s": 1.5,
        "peak_mb": 300.0, "device_mb": None, "first_frame": first, "random_weights": False,
        "memory_mb": [(first + f, 200.0 + f) for f in range(5, frames, 5)], "status": MEASURED,
        **summary(times), **more,
    }  # fmt: skip


@pytest.fixture
def results():
    rows = []
    for model in MODELS:
        for backend, ms in (("reference", 100), ("cpu", 40)):
            stages = {"encode_query": ms / 2, "read_memory": ms / 4, "other": ms / 4}
            for memory, late in (("finite", 1), ("infinite", 3)):
                who = (model, backend, memory)
                rows += [
                    row(*who, "short", ms, stages=stages, command_fps=900 / ms, iou=0.999,
                        jf=0.7, jf_laps=[0.7, 0.6], davis="DAVIS, 2 sequences"),
                    row(*who, "prefilled 1x", ms, frames=20, first=61),
                    row(*who, "prefilled 10x", ms * late, frames=20, first=601, stages=stages),
                ]  # fmt: skip
    absent = {"model": MODELS[0], "backend": "tensorrt", "memory": "finite", "objects": 1}
    rows.append(absent | {"size": 240, "clip": "", "status": "absent: no NVIDIA GPU"})
    return Results(CONDITIONS, rows)


def test_files_hold_what_was_measured(results, tmp_path):
    report.write(tmp_path / "r.jsonl", results)
    again = report.read(tmp_path / "r.jsonl")
    assert again.conditions == results.conditions and len(again.rows) == len(results.rows)
    assert again.rows[0]["times_ms"] == results.rows[0]["times_ms"]
    (tmp_path / "x.jsonl").write_text('{"rows": 1}\n')
    with pytest.raises(InputError, match="not a benchmark's results"):
        report.read(tmp_path / "x.jsonl")


def test_table(results):
    text = report.markdown(results)
    assert re.search(
        r"mobilenetv2 \| cpu \| finite \| short .*\| 2\.5\d \[2\.\d+, 2\.\d+\] \|", text
    )
    assert "| tensorrt | finite |  | 1 × 240 | absent: no NVIDIA GPU |" in text
    finite, infinite = re.findall(
        r"mobilenetv2 \| cpu \| \w+ \|[^|]+\|[^|]+\|[^|]+\| (\S+) \[", text
    )
    assert float(finite) == pytest.approx(1, abs=0.05)
    assert float(infinite) == pytest.approx(1 / 3, abs=0.05)
    assert "J&F by tenth (DAVIS, 2 sequences)" in text and "0.700 0.600" in text
    widths = {line.count("|") for line in report.table(results)}
    assert widths == {14}, "every line has the same number of cells"


def test_memory_growth():
    grown = row(MODELS[0], "cpu", "finite", "long", 10, frames=100)
    assert report.growth(grown) == pytest.approx(295 / 205 - 1)


def test_comparison_tells_noise_from_difference(results):
    faster = [dict(r) for r in results.rows]
    for r in faster:
        if r["status"] == MEASURED and r["backend"] == "cpu":
            r |= summary([t * 0.8 for t in r["times_ms"]])
        elif r["status"] == MEASURED:
            r |= summary(r["times_ms"][::-1])
    faster = Results({**CONDITIONS, "threads": 4}, [r for r in faster if r["memory"] == "finite"])
    lines = compare.table(results, faster).splitlines()
    verdicts = {line.split("|")[-2].strip() for line in lines if " cpu finite" in line}
    assert verdicts == {"faster"}
    assert {line.split("|")[-2].strip() for line in lines if "reference finite" in line} == {
        "noise"
    }
    assert sum("only in A" in line for line in lines) == 12
    assert "threads: 2 → 4" in lines and "not cover" in compare.table(results, faster)
    back = compare.table(faster, results)
    assert back.count("| slower |") == 6


def test_results_go_between_the_markers_of_the_page(results, tmp_path):
    page = tmp_path / "benchmark.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    plots.draw(results, tmp_path)
    for _ in range(2):
        report.write_page(page, results, tmp_path)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\nMeasured on A CPU") and text.endswith(
        f"{END}\nafter\n"
    )
    assert "old" not in text and text.count("| `mobilevos-resnet18` | `cpu` |") == 1
    assert "Not measured: `tensorrt` (absent: no NVIDIA GPU)." in text
    for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (tmp_path / link).is_file()
    page.write_text("no markers")
    with pytest.raises(InputError, match="once each"):
        report.write_page(page, results, tmp_path)


def test_all_plots_are_drawn_and_old_ones_go(results, tmp_path):
    names = {path.name for path in plots.draw(results, tmp_path)}
    assert names == {"fps.png", "memory.png", "stages.png"}
    assert plots.draw(Results(CONDITIONS, []), tmp_path) == []
    assert not list(tmp_path.glob("*.png"))


def test_published_table_marks_every_cell(results):
    text = published.table(results, bound=lambda model, card: 162.4)
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    for line in lines:
        for cell in line.split("|")[3:-1]:
            assert cell.strip() == "–" or re.search(r"\((p|b|m;.*)\)$", cell.strip()), cell
    (ours,) = (line.split("|") for line in lines if "MobileVOS ResNet18" in line)
    assert ours[6].strip() == "144.7 / 145.4 (p)" and ours[7].strip() == "162 (b)"
    assert re.match(r" 2[45]\.\d / 2[45]\.\d \(m; cpu, 426×240\)", ours[10])
    assert lines[0].split("|")[8].strip() == "6.8 / out of memory (p)"
    assert "(m;" not in published.table(None, bound=lambda model, card: None)


def test_iou_is_pooled_over_objects():
    ours = np.array([[1, 1, 2, 0]], np.uint8)
    assert pooled_iou(ours, ours) == 1 and pooled_iou(ours * 0, ours * 0) == 1
    # Object 1: one of two pixels; object 2: none of two.
    assert pooled_iou(ours, np.array([[1, 2, 0, 0]], np.uint8)) == pytest.approx(1 / 4)


class Answers:
    """Says where the rectangle is, until lap ``good``; after it, always where it began."""

    def __init__(self, good: int) -> None:
        self.good = good

    def start(self, frame, mask):
        self.at, self.first = 0, mask
        return mask

    def step(self, frame):
        self.at += 1
        return (frame[..., 0] > 128).astype(np.uint8) if self.at < 5 * self.good else self.first


def test_accuracy_by_laps_shows_drift(tmp_path):
    pytest.importorskip("vos_benchmark", reason="extra 'eval' is not installed")
    from PIL import Image

    for kind, suffix in (("JPEGImages", "png"), ("Annotations", "png")):
        folder = tmp_path / "DAVIS" / kind / "480p" / "box"
        folder.mkdir(parents=True)
        for t in range(5):
            picture = np.zeros((40, 60), np.uint8)
            picture[10:30, 5 + 8 * t : 25 + 8 * t] = 255
            image = np.repeat(picture[..., None], 3, 2) if kind == "JPEGImages" else picture
            Image.fromarray(image).save(folder / f"{t:05d}.{suffix}")
    root = tmp_path / "DAVIS"
    told = score(Answers(good=9), root, None)
    assert (told["j"], told["f"], told["jf"], told["jf_laps"]) == (1, 1, 1, None)
    told = score(Answers(good=2), root, ["box"], laps=3)
    assert told["davis"] == "DAVIS, 1 sequences"
    assert told["jf_laps"][:2] == [1, 1] and told["jf_laps"][2] < 0.8


CPU = Card("this CPU", (), 1e12, None, 1e10, math.inf)


@pytest.mark.build
def test_bounds_of_this_machine_and_what_part_of_them_is_reached(
    results, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("bench.roofline.measure_cpu", lambda threads: CPU)
    only = Results(CONDITIONS, [r for r in results.rows if r["model"] == MODELS[1]])
    report.write(tmp_path / "r.jsonl", only)
    options = ["--models", MODELS[1], "--size", "64x96", "--results", str(tmp_path / "r.jsonl")]
    assert main(options) == 0
    told = capsys.readouterr().out
    assert "this CPU: 1000.0 GFLOP/s, copies 10.0 GB/s, both measured here" in told
    assert "| stage | this CPU |" in told and "A40" not in told
    gflop = analysis(MODELS[1], (240, 432), cards=(CPU,))["total"]["gflop"]
    fps = only.measured("short")[0]["fps"]
    assert f"{fps * gflop / 1e3:.0%} of the GEMM rate" in told
    assert main(["--models", "x"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["--size", "65x96"])
