"""The command ``evaluate`` on synthetic DAVIS folders, with segmenters whose answers are known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.davis import FRAMES, SIZE, davis, truth
from PIL import Image

import engine.segmenter
from engine.cli import main
from engine.commands.evaluate import Score, evaluate, interval
from engine.data.davis import load_truth
from engine.errors import InputError, MissingExtraError
from engine.media.masks import load_ids, write_mask
from engine.options import LoadOptions

pytest.importorskip("vos_benchmark", reason="extra 'eval' is not installed")


class Answers:
    """A segmenter that returns ``answer(t)`` for frame t of every sequence."""

    model, model_hash, backend, size = "fake", "0" * 12, "cpu", 480
    memory, tta = "finite", False

    def __init__(self, answer) -> None:
        self.answer, self.starts, self.seen = answer, [], []

    @property
    def stats(self):
        return engine.segmenter.Stats(FRAMES, 25.0, 40.0, 44.0)

    def segment(self, frames, mask):
        self.starts.append(mask)
        for t, frame in enumerate(frames):
            self.seen.append(frame)
            yield self.answer(t, int(mask.max()))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass


@pytest.mark.parametrize("folder", ["480p", "1080p", "Full-Resolution", "."])
@pytest.mark.parametrize("objects", [1, 2])
def test_truth_scores_one(tmp_path, folder, objects):
    root = davis(tmp_path, {"swan": objects}, folder)
    segmenter = Answers(truth)
    scores = evaluate(segmenter, root, say=lambda line: None)
    assert [(s.sequence, s.object, s.j, s.f, s.jf) for s in scores] == [
        ("swan", k, 1.0, 1.0, 1.0) for k in range(1, objects + 1)
    ]
    np.testing.assert_array_equal(segmenter.starts[0], truth(0, objects))
    assert len(segmenter.seen) == FRAMES and segmenter.seen[0].shape == (*SIZE, 3)


@pytest.mark.parametrize("objects", [1, 2])
def test_a_shifted_mask_scores_its_overlap(tmp_path, objects):
    """J against plain NumPy, over the frames that count; F between nothing and all."""
    root = davis(tmp_path, {"swan": objects})

    def shifted(t, k):
        return np.roll(truth(t, k), (t, 2 * t), (0, 1))

    scores = evaluate(Answers(shifted), root, say=lambda line: None)
    assert [s.object for s in scores] == list(range(1, objects + 1))
    for score in scores:
        want = []
        for t in range(1, FRAMES - 1):
            a, b = truth(t, objects) == score.object, shifted(t, objects) == score.object
            want.append((a & b).sum() / (a | b).sum())
        assert score.j == pytest.approx(np.mean(want))
        assert 0 < score.f < 1
        assert score.jf == pytest.approx((score.j + score.f) / 2)


def test_an_object_that_is_lost_scores_zero(tmp_path):
    root = davis(tmp_path, {"swan": 2})

    def only_one(t, k):
        return np.where(truth(t, k) == 1, 1, 0).astype(np.uint8)

    one, two = evaluate(Answers(only_one), root, say=lambda line: None)
    assert (one.j, one.f, two.j, two.f) == (1, 1, 0, 0)


def test_the_first_and_the_last_frame_do_not_count(tmp_path):
    root = davis(tmp_path, {"swan": 2})

    def wrong_at_the_ends(t, k):
        return truth(t, k) if 0 < t < FRAMES - 1 else np.zeros(SIZE, np.uint8)

    scores = evaluate(Answers(wrong_at_the_ends), root, say=lambda line: None)
    assert [(s.j, s.f) for s in scores] == [(1, 1), (1, 1)]
    # The others do.
    for t in range(1, FRAMES - 1):

        def wrong(now, k, t=t):
            return truth(now, k) if now != t else np.zeros(SIZE, np.uint8)

        scores = evaluate(Answers(wrong), root, say=lambda line: None)
        assert [s.j for s in scores] == pytest.approx([0.75, 0.75])


def test_the_table_and_the_files(tmp_path):
    root, lines = davis(tmp_path / "davis", {"ant": 1, "bee": 2, "cat": 1}), []

    def half(t, k):
        return truth(t, k) if k == 2 else np.zeros(SIZE, np.uint8)

    evaluate(Answers(half), root, ["bee", "ant"], tmp_path / "out", lines.append)
    *columns, between = lines
    head, *rows, mean = [line.split() for line in columns]
    assert between == "95 % interval of J&F over sequences: 0.000 to 1.000"
    assert head == ["sequence", "object", "J&F", "J", "F", "FPS"]
    assert rows == [
        ["bee", "1", "1.000", "1.000", "1.000", "25.0"],
        ["bee", "2", "1.000", "1.000", "1.000", "25.0"],
        ["ant", "1", "0.000", "0.000", "0.000", "25.0"],
    ]
    assert mean == ["mean", "0.667", "0.667", "0.667", "25.0"], "over objects, as DAVIS-2017"
    assert len({len(line) for line in columns}) == 1, "the columns are aligned"

    written = sorted(str(p.relative_to(tmp_path / "out")) for p in tmp_path.glob("out/*/*"))
    assert written == [f"{name}/{t:05d}.png" for name in ("ant", "bee") for t in range(FRAMES)]
    for t in range(FRAMES):
        path = tmp_path / "out" / "bee" / f"{t:05d}.png"
        np.testing.assert_array_equal(load_ids(path), truth(t, 2))
        with Image.open(path) as image:
            assert image.mode == "P"
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {k: scores[k] for k in ("model", "backend", "size", "memory", "tta")} == {
        "model": "fake", "backend": "cpu", "size": 480, "memory": "finite", "tta": False,
    }  # fmt: skip
    assert scores["mean"] == pytest.approx({"j": 2 / 3, "f": 2 / 3, "jf": 2 / 3})
    assert scores["objects"][2] == {"sequence": "ant", "object": 1, "j": 0.0, "f": 0.0, "fps": 25.0}


def test_ids_of_both_kinds_of_annotation(tmp_path):
    ids = truth(0, 2)
    write_mask(tmp_path / "many.png", ids)
    np.testing.assert_array_equal(load_truth(tmp_path / "many.png"), ids)
    Image.fromarray(ids).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(load_truth(tmp_path / "grey.png"), ids)
    Image.fromarray((ids > 0).astype(np.uint8) * 255).save(tmp_path / "one.png")
    np.testing.assert_array_equal(load_truth(tmp_path / "one.png"), ids > 0)
    Image.fromarray(ids > 0).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(load_truth(tmp_path / "bits.png"), ids > 0)


# Through the command line


@pytest.fixture
def command(monkeypatch):
    """Run ``evaluate`` with perfect answers in place of the network."""
    loaded = []

    def load(options):
        loaded.append(options)
        return Answers(truth)

    monkeypatch.setattr(engine.segmenter.Segmenter, "load", load)
    run = lambda root, *more: main(["evaluate", "--davis", str(root), *map(str, more)])  # noqa: E731
    run.loaded = loaded
    return run


def test_the_command(tmp_path, command, capsys):
    root = davis(tmp_path / "davis", {"ant": 1, "bee": 2})
    options = ["--sequences", "bee", "--model", "m", "--size", 240, "--backend", "cpu"]
    options += ["--memory", "infinite", "--tta"]
    assert command(root, *options, "--out", tmp_path / "out", "--threads", 2) == 0
    assert command.loaded[0] == LoadOptions("m", "cpu", 240, 2, memory="infinite", tta=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["sequence", "bee", "bee", "mean"]
    assert (tmp_path / "out" / "scores.json").is_file()


def spoil(case: str, root: Path) -> None:
    masks = root / "Annotations" / "480p" / "ant"
    images = root / "JPEGImages" / "480p" / "ant"
    if case == "no annotations":
        (root / "Annotations").rename(root / "elsewhere")
    elif case == "no sequences":
        masks.rename(root / "elsewhere")
    elif case == "missing mask":
        (masks / "00003.png").unlink()
    elif case == "short":
        for t in range(2, FRAMES):
            (images / f"{t:05d}.jpg").unlink()
    elif case == "no images":
        for path in images.iterdir():
            path.unlink()
    elif case == "damaged mask":
        (masks / "00003.png").write_bytes(b"no image")
    elif case == "colour mask":
        Image.new("RGB", SIZE[::-1], "red").save(masks / "00000.png")
    elif case == "other size":
        Image.new("L", (9, 9), 255).save(masks / "00003.png")
    elif case == "first mask of another size":
        Image.new("L", (9, 9), 255).save(masks / "00000.png")
    elif case == "masks empty":
        for t in range(1, FRAMES):
            Image.new("L", SIZE[::-1]).save(masks / f"{t:05d}.png")


@pytest.mark.parametrize(("case", "says"), [
    ("no folder", "is not laid out as DAVIS"),
    ("no annotations", "is not laid out as DAVIS"),
    ("no sequences", "no sequences"),
    ("missing sequence", "no sequence zebra in"),
    ("missing mask", "00003.png' is missing"),
    ("short", "at least 3"),
    ("no images", "has no images"),
    ("damaged mask", "00003.png' is not a readable image"),
    ("colour mask", "00000.png' is a colour image"),
    ("other size", "00003.png' is not of its frame's size"),
])  # fmt: skip
def test_errors_are_one_line(tmp_path, command, capsys, case, says):
    root = davis(tmp_path / "davis", {"ant": 1})
    spoil(case, root)
    more = ["--sequences", "zebra", "ant"] if case == "missing sequence" else []
    assert command(tmp_path / "none" if case == "no folder" else root, *more) == 2
    captured = capsys.readouterr()
    *progress, error = captured.err.replace("\r", "\n").splitlines()
    assert error.startswith("error: ") and says in error
    assert "Traceback" not in captured.err and not captured.out
    assert all("frame/s" in line or "?" in line or not line.strip() for line in progress)


def test_masks_that_are_empty_in_all_frames_that_count(tmp_path):
    root = davis(tmp_path, {"ant": 1})
    spoil("masks empty", root)
    with pytest.raises(InputError, match="masks of ant are empty in all frames that count"):
        evaluate(Answers(lambda t, k: np.zeros(SIZE, np.uint8)), root, say=print)


def test_with_the_network(tmp_path, capsys):
    """The whole command with the shipped weights, on two sequences; errors of the API included."""
    root = davis(tmp_path / "davis", {"ant": 1, "bee": 2})
    assert main(["evaluate", "--davis", str(root), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["sequence", "ant", "bee", "bee", "mean", "95"]
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["backend"] == "cpu" and len(scores["model_hash"]) == 12
    assert all(0 <= s["j"] <= 1 and s["fps"] > 0 for s in scores["objects"])
    spoil("first mask of another size", root)
    assert main(["evaluate", "--davis", str(root)]) == 2
    assert "the mask is 9x9, but the frame is 90x60" in capsys.readouterr().err


def test_without_the_extra(tmp_path, command, capsys, monkeypatch):
    root = davis(tmp_path, {"ant": 1})
    for name in [n for n in sys.modules if n.split(".")[0] == "vos_benchmark"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vos_benchmark", None)  # its import fails
    assert command(root) == 2
    error = capsys.readouterr().err.replace("\r", "\n").splitlines()[-1]
    assert "pip install '.[eval]'" in error and "vos_benchmark" in error
    with pytest.raises(MissingExtraError):
        evaluate(Answers(truth), root)


def test_the_interval_is_drawn_over_sequences():
    """Of many equal objects in one sequence each is no evidence of its own."""
    spread = [Score(n, 1, v, v, 1.0) for n, v in zip("abcdef", range(5, 11), strict=True)]
    low, high = interval(spread)
    assert 5.5 < low < 7.2 < 7.8 < high < 9.5
    crowded = [Score("a", k, 0.5, 0.5, 1.0) for k in range(1, 99)] + [Score("b", 1, 1.0, 1.0, 1.0)]
    low, high = interval(crowded)
    assert low == pytest.approx(0.5) and high == pytest.approx(1.0)
