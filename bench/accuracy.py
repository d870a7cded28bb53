"""Agreement with the reference, and J&F, also as a clip goes on and on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.cases import lap
from engine.commands.evaluate import published_evaluator
from engine.data.davis import Dataset, load_truth
from engine.errors import InputError

U8 = NDArray[np.uint8]


def pooled_iou(masks: U8, others: U8) -> float:
    """IoU of equal ids over all frames, objects and pixels of [T, H, W]; 1 if both are empty."""
    either = (masks > 0) | (others > 0)
    # A pixel of two different objects is in neither's intersection, but in both's union.
    both = (masks > 0) & (others > 0)
    same = both & (masks == others)
    union = int(either.sum()) + int((both & ~same).sum())
    return float(same.sum() / union) if union else 1.0


def score(
    subject: Any, root: Path, sequences: Sequence[str] | None, laps: int = 1
) -> dict[str, Any]:
    """J&F of ``subject`` on a folder laid out as DAVIS, as the published evaluator measures it.

    With ``laps`` above 1 every sequence is played forwards and backwards in turn, ``laps`` times
    its length, and J&F is given for each stretch of that length. The given frame does not count,
    nor does the last of each stretch, as in the published measure.

    Returns ``jf``, ``j``, ``f`` (of the first stretch, means over objects), ``jf_laps`` and
    ``davis`` (the folder's name and how many sequences). Raises InputError.
    """
    dataset = Dataset.find(root)
    names = dataset.sequences(sequences)
    j: list[list[float]] = [[] for _ in range(laps)]
    f: list[list[float]] = [[] for _ in range(laps)]
    for name in names:
        images, paths = dataset.frames(name)
        frames = [frame.image for frame in images.frames()]
        truths = [load_truth(path) for path in paths]
        if not truths[0].any():
            raise InputError(f"the first mask of {name} is empty; leave it out with --sequences")
        stretches = [published_evaluator(name) for _ in range(laps)]
        length = len(frames)
        for t in range(laps * length):
            place = lap(t, length)
            ids = subject.step(frames[place]) if t else subject.start(frames[0], truths[0])
            if t and (t + 1) % length:
                stretches[t // length].feed_frame(ids, truths[place])
        for stretch, evaluator in enumerate(stretches):
            of_j, of_f = evaluator.conclude()
            j[stretch] += [of_j[k] / 100 for k in sorted(of_j)]
            f[stretch] += [of_f[k] / 100 for k in sorted(of_f)]
    means = [(float(np.mean(a)), float(np.mean(b))) for a, b in zip(j, f, strict=True)]
    return {
        "jf": round(sum(means[0]) / 2, 4),
        "j": round(means[0][0], 4),
        "f": round(means[0][1], 4),
        "jf_laps": [round((a + b) / 2, 4) for a, b in means] if laps > 1 else None,
        "davis": f"{root.resolve().name}, {len(names)} sequences",
    }
