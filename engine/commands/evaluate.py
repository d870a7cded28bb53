"""The command ``evaluate``: J, F and J&F on a folder laid out as DAVIS, with the speed beside them.

The measures are those of the published evaluator (PyPI ``vos-benchmark``): J is the region's
intersection over union, F the boundary's F-measure; the first and the last frame do not count.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from engine.data.davis import Dataset, load_truth
from engine.errors import InputError, MissingExtraError
from engine.files import make_folder, write_atomic
from engine.intake import Mask
from engine.media.images import ImageFolder
from engine.media.masks import write_mask
from engine.segmenter import Segmenter


@dataclass(frozen=True)
class Score:
    """One object of one sequence: J and F in 0…1, FPS of the sequence's steps."""

    sequence: str
    object: int
    j: float
    f: float
    fps: float

    @property
    def jf(self) -> float:
        """The mean of J and F."""
        return (self.j + self.f) / 2


def evaluate(
    segmenter: Segmenter[Mask],
    root: Path,
    sequences: Sequence[str] | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Score]:
    """Segment and score sequences, with a progress bar; ``say`` takes the lines of the table.

    With ``out``, predicted masks are written as OUT/SEQUENCE/NNNNN.png and all figures as
    OUT/scores.json. Raises InputError for a folder that is not laid out as DAVIS.
    """
    dataset = Dataset.find(root)
    names = dataset.sequences(sequences)
    data = [(name, *dataset.frames(name)) for name in names]
    scores: list[Score] = []
    with tqdm(total=sum(len(masks) for _, _, masks in data), unit="frame") as bar:
        for name, images, masks in data:
            bar.set_description(name)
            scores += score_sequence(segmenter, name, images, masks, out, bar)
    for line in table(scores):
        say(line)
    if out:
        summary = {
            "model": segmenter.model,
            "model_hash": segmenter.model_hash,
            "backend": segmenter.backend,
            "size": segmenter.size,
            "memory": segmenter.memory,
            "tta": segmenter.tta,
            "interval": interval(scores),
            "mean": {"j": mean(scores, "j"), "f": mean(scores, "f"), "jf": mean(scores, "jf")},
            "objects": [asdict(s) for s in scores],
        }
        make_folder(out)
        write_atomic(out / "scores.json", json.dumps(summary, indent=1).encode())
    return scores


def score_sequence(
    segmenter: Segmenter[Mask],
    name: str,
    images: ImageFolder,
    masks: list[Path],
    out: Path | None,
    bar: Any,
) -> list[Score]:
    """Segment one sequence from its first mask and score each of its objects."""
    evaluator = published_evaluator(name)
    if out:
        make_folder(out / name)
    frames = (frame.image for frame in images.frames())
    predictions = segmenter.segment(frames, load_truth(masks[0]))
    for i, (path, prediction) in enumerate(zip(masks, predictions, strict=True)):
        if 0 < i < len(masks) - 1:
            truth = load_truth(path)
            if truth.shape != prediction.shape:
                raise InputError(f"'{path}' is not of its frame's size; masks must fit the frames")
            evaluator.feed_frame(prediction, truth)
        if out:
            write_mask(out / name / path.name, prediction)
        bar.update()
    j, f = evaluator.conclude()
    if not j:
        raise InputError(f"the masks of {name} are empty in all frames that count; leave it out")
    fps = segmenter.stats.fps
    return [Score(name, int(k), float(j[k]) / 100, float(f[k]) / 100, fps) for k in sorted(j)]


def published_evaluator(name: str) -> Any:
    """The evaluator of ``vos-benchmark``; raises MissingExtraError if it is not installed."""
    try:
        from vos_benchmark.evaluator import Evaluator
    except ModuleNotFoundError as error:
        raise MissingExtraError("evaluate", str(error.name), "eval") from error
    return Evaluator(name=name)


def mean(scores: list[Score], field: str) -> float:
    """Mean over all objects, as DAVIS-2017 averages."""
    return float(np.mean([getattr(s, field) for s in scores]))


def interval(scores: list[Score], draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean J&F, drawn over whole sequences.

    It says how far another choice of as many sequences might lie, not how well videos of another
    kind would do. Source: Efron, "Bootstrap methods: another look at the jackknife", 1979.
    """
    names = sorted({s.sequence for s in scores})
    rows = [[s.jf for s in scores if s.sequence == name] for name in names]
    total, count = np.array([sum(r) for r in rows]), np.array([len(r) for r in rows])
    drawn = np.random.default_rng(0).integers(len(names), size=(draws, len(names)))
    means = total[drawn].sum(1) / count[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def table(scores: list[Score]) -> Iterator[str]:
    """The lines of the printed table."""
    width = max(len(name) for name in ("sequence", *(s.sequence for s in scores)))
    yield f"{'sequence':<{width}}  object    J&F      J      F    FPS"
    for s in scores:
        yield (
            f"{s.sequence:<{width}}  {s.object:>6}  {s.jf:.3f}  {s.j:.3f}  {s.f:.3f}  {s.fps:5.1f}"
        )
    fps = mean(scores, "fps")
    jf, j, f = (mean(scores, field) for field in ("jf", "j", "f"))
    yield f"{'mean':<{width}}  {'':>6}  {jf:.3f}  {j:.3f}  {f:.3f}  {fps:5.1f}"
    if len({s.sequence for s in scores}) > 1:
        low, high = interval(scores)
        yield f"95 % interval of J&F over sequences: {low:.3f} to {high:.3f}"
