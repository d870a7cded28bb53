"""Training clips from DAVIS videos and from still images, made anew for every step.

Sample n of a run depends on (seed, n) alone: a resumed run sees what an unbroken one would have.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.errors import InputError
from engine.train.augment import jitter_colours, random_walk
from engine.train.config import DEVELOPMENT, Phase

U8 = NDArray[np.uint8]
Rng = np.random.Generator
MIN_AREA = 120  # pixels of an object that is worth following, in the crop


@dataclass(frozen=True)
class Source:
    """A video or, with one frame, a still image: frames [H, W, 3] uint8, masks [H, W] ids."""

    name: str
    frames: list[U8]
    masks: list[U8]


def load_davis(root: Path, exclude: tuple[str, ...]) -> list[Source]:
    """Read all sequences of a DAVIS folder at 480p into memory, but for those in ``exclude``.

    Raises InputError if there are none, one has frames without masks, or ``exclude`` names a
    sequence that is neither there nor of the development split: it would be trained on misspelt.
    """
    images = root / "JPEGImages" / "480p"
    if not images.is_dir():
        raise InputError(f"no DAVIS data in '{root}': '{images}' is missing")
    have = {folder.name for folder in images.iterdir()}
    unknown = sorted(set(exclude) - have - set(DEVELOPMENT))
    if unknown:
        raise InputError(
            f"no sequence '{unknown[0]}' to exclude in '{images}'; "
            f"there are: {', '.join(sorted(have))}"
        )
    sources = []
    for folder in sorted(images.iterdir()):
        if folder.name in exclude:
            continue
        marks = root / "Annotations" / "480p" / folder.name
        pairs = [read_pair(p, marks / f"{p.stem}.png") for p in sorted(folder.glob("*.jpg"))]
        if pairs:
            sources.append(Source(folder.name, [f for f, _ in pairs], [m for _, m in pairs]))
    if not sources:
        raise InputError(f"no sequences to train on in '{images}', but for excluded ones")
    return sources


def read_pair(image: Path, mask: Path) -> tuple[U8, U8]:
    """Read a frame [H, W, 3] and its mask's ids [H, W]; InputError names the file at fault."""
    try:
        frame = np.asarray(Image.open(image).convert("RGB"))
        ids = np.asarray(Image.open(mask)).astype(np.uint8)
    except FileNotFoundError as error:
        raise InputError(f"'{error.filename}' is missing; each image needs its mask") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"'{image}' or '{mask}' is damaged ({error}); replace it") from error
    if ids.shape != frame.shape[:2]:
        raise InputError(f"'{mask}' is {ids.shape}, but its frame is {frame.shape[:2]}")
    return frame, ids


def load_stills(root: Path) -> list[Source]:
    """Read ``root/<set>/images`` and ``masks`` (ids) as one-frame sources.

    An image without an object is left out; raises InputError if there are no others.
    """
    sources = []
    for path in sorted(root.glob("*/images/*")):
        folder = path.parent.parent
        image, ids = read_pair(path, folder / "masks" / f"{path.stem}.png")
        if ids.any():
            sources.append(Source(f"{folder.name}/{path.stem}", [image], [ids]))
    if not sources:
        raise InputError(
            f"no still images with objects in '{root}'; they belong into "
            f"'{root / 'SET' / 'images'}', their masks into '{root / 'SET' / 'masks'}'"
        )
    return sources


class Batch(NamedTuple):
    """Clips of one step: B of T frames, with K objects (1 or 2) each."""

    frames: NDArray[np.float32]  # [B, T, 3, H, W] in −1…1
    labels: NDArray[np.int64]  # [B, T, H, W] in 0…K
    objects: int
    seeds: NDArray[np.int64]  # [B], of whatever else is random about a clip


@dataclass(frozen=True)
class Clips:
    """All training data, and how clips are drawn from it."""

    videos: list[Source]
    stills: list[Source]

    def batch(
        self, rng: Rng, phase: Phase, occluder: float, rank: int = 0, world: int = 1
    ) -> Batch:
        """Draw the batch of process ``rank`` of ``world``, each of ``phase.batch`` clips.

        Every clip has a seed of its own, so that the processes together draw what one alone would
        with a batch ``world`` times as large, and none draws the others' clips.
        """
        objects = 2 if rng.random() < phase.pairs else 1
        seeds = rng.integers(2**63, size=phase.batch * world)
        seeds = seeds[rank * phase.batch : (rank + 1) * phase.batch]
        clips = [self.clip(np.random.default_rng(s), phase, objects, occluder) for s in seeds]
        frames = np.stack([np.stack(f) for f, _ in clips]).transpose(0, 1, 4, 2, 3)
        labels = np.stack([np.stack(m) for _, m in clips]).astype(np.int64)
        return Batch(np.ascontiguousarray(frames), labels, objects, seeds)

    def clip(
        self, rng: Rng, phase: Phase, objects: int, occluder: float
    ) -> tuple[list[NDArray[np.float32]], list[U8]]:
        """Draw frames [H, W, 3] float in −1…1 and label maps [H, W] of one clip."""
        while True:
            frames, masks = self.single(rng, phase, still=rng.random() < phase.static)
            if objects == 2 or rng.random() < occluder:
                over, shapes = self.single(rng, phase, still=rng.random() < 0.6, pasted=True)
                label = 2 if objects == 2 else 0
                for f, m, o, s in zip(frames, masks, over, shapes, strict=True):
                    f[s > 0] = o[s > 0]
                    m[s > 0] = label
            areas = [(masks[0] == k).sum() for k in range(1, objects + 1)]
            if min(areas) >= MIN_AREA:
                return jitter_colours(rng, frames), masks

    def single(
        self, rng: Rng, phase: Phase, still: bool, pasted: bool = False
    ) -> tuple[list[U8], list[U8]]:
        """Draw a clip with one object, label 1; ``pasted`` ones move more and may leave."""
        height, width = phase.size
        for attempt in range(1000):
            if attempt and attempt % 20 == 0:
                still = not still
            if still:
                source = self.stills[rng.integers(len(self.stills))]
                times = [0] * phase.frames
            else:
                source = self.videos[rng.integers(len(self.videos))]
                times = pick_times(rng, len(source.frames), phase.frames, phase.gap)
            first = source.masks[times[0]]
            ids = np.unique(first[first > 0])
            if not len(ids):
                continue
            chosen = ids[rng.integers(len(ids))]
            if (first == chosen).sum() < 0.004 * first.size:
                continue
            ys, xs = np.nonzero(first == chosen)
            at = rng.integers(len(ys))
            span = min(first.shape[0] / height, first.shape[1] / width)
            # A still fills the crop or less; a video is seen from 1:1 to the whole frame.
            zoom = (
                span * rng.uniform(0.55, 1.25)
                if still
                else np.exp(rng.uniform(np.log(min(0.9, span)), np.log(max(1.05 * span, 1.0))))
            )
            motion = 1.0 if still else 0.25
            walk = random_walk(
                rng, phase.frames, (xs[at], ys[at]), zoom, motion * (2.0 if pasted else 1.0),
                first.shape, phase.size,
            )  # fmt: skip
            frames, masks = [], []
            for t, warp in zip(times, walk, strict=True):
                frames.append(warp.image(source.frames[t]))
                masks.append(warp.mask(source.masks[t] == chosen))
            if masks[0].sum() >= MIN_AREA:
                return frames, masks
        raise InputError(
            f"found no object of {MIN_AREA} pixels in crops of {width}x{height}: the masks of the "
            "training data are empty or tiny"
        )


def pick_times(rng: Rng, length: int, frames: int, gap: int) -> list[int]:
    """Indices of a clip: steps of 1…gap, forwards or backwards, anywhere in the video."""
    steps = rng.integers(1, gap + 1, frames - 1)
    while steps.sum() > length - 1:
        steps = np.maximum(1, steps // 2)
        if (steps == 1).all():
            steps = steps[: length - 1]
            break
    offsets = np.concatenate([[0], np.cumsum(steps)])
    start = rng.integers(0, length - offsets[-1])
    times: list[int] = (start + offsets).tolist()
    times += [times[-1]] * (frames - len(times))
    return times if rng.random() < 0.5 else times[::-1]
