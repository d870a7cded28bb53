"""Training clips from videos and still images, made anew for every step.

Sample n of a run depends on (seed, n) alone: a resumed run sees what an unbroken one would have.
A clip is one moving picture with its own object, or a composed scene: a background and cut-outs
that each move on their own. Objects, look-alikes, thin occluders and haze may pass over either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from engine.errors import InputError
from engine.train.augment import U8, Rng, Warp, degrade, jitter_colours, random_walk
from engine.train.config import Phase, TrainConfig
from engine.train.layers import Layer, haze, holes, lattice, paste
from engine.train.sources import Source, Thing

Edit = Callable[[NDArray[np.bool_]], NDArray[np.bool_]]
DISC5, DISC7, DISC13 = (
    np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (n, n))) for n in (5, 7, 13)
)
MIN_AREA = 120  # pixels of an object that is worth following, in the crop


class Batch(NamedTuple):
    """Clips of one step: B of T frames, with K objects (1 or 2) each."""

    frames: NDArray[np.uint8]  # [B, T, H, W, 3]
    labels: NDArray[np.uint8]  # [B, T, H, W] in 0…K
    weights: NDArray[np.uint8]  # [B, T, H, W], how much a pixel counts, from 1
    objects: int
    seeds: NDArray[np.int64]  # [B], of whatever else is random about a clip


class Pick(NamedTuple):
    """An object of a source at the times of a clip."""

    source: Source
    times: list[int]
    thing: Thing
    at: tuple[int, int]  # x, y of one of its pixels in the first frame


@dataclass(frozen=True)
class Clips:
    """All training data, and how clips are drawn from it."""

    videos: list[Source]
    stills: list[Source]

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """How often each video is drawn: by its length, but none much more often than others."""
        lengths = np.minimum([len(v.frames) for v in self.videos], 40.0)
        return np.asarray(lengths / lengths.sum(), np.float64)

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
        frames = np.stack([np.stack(f) for f, _ in clips])
        labels = np.stack([np.stack(m) for _, m in clips])
        weights = np.ones_like(labels)
        for b, t in np.ndindex(*labels.shape[:2]):
            if t >= phase.frames - phase.supervised:
                weights[b, t] = weigh(labels[b, t], objects)
        return Batch(frames, labels, weights, objects, seeds)

    def clip(
        self, rng: Rng, phase: Phase, objects: int, occluder: float
    ) -> tuple[list[U8], list[U8]]:
        """Draw frames [H, W, 3] and label maps [H, W] of one clip."""
        while True:
            over: list[Layer] = []
            if rng.random() < phase.composed:
                frames = self.background(rng, phase)
                labels = [np.zeros(phase.size, np.uint8) for _ in frames]
                pick = self.pick(rng, phase, still=rng.random() < phase.static, whole=True)
                over.append(self.cutout(rng, phase, 1, pick))
                if rng.random() < 0.3:  # a look-alike, which may be the second object
                    own = 2 if objects == 2 and rng.random() < 0.6 else 0
                    over.append(self.cutout(rng, phase, own, pick))
                if rng.random() < 0.3:
                    over.append(self.cutout(rng, phase, 0))
            else:
                frames, labels = self.picture(rng, phase)
                if rng.random() < occluder:
                    over.append(self.cutout(rng, phase, 0))
            if objects == 2 and all(layer.label != 2 for layer in over):
                over.append(self.cutout(rng, phase, 2))
            order = rng.permutation(len(over))
            for layer in [over[i] for i in order]:
                frames, labels = paste(frames, labels, layer)
            if rng.random() < phase.thin:
                frames, labels = paste(frames, labels, lattice(rng, len(frames), phase.size))
            if rng.random() < phase.haze:
                frames, labels = paste(frames, labels, haze(rng, frames, labels))
            areas = [(labels[0] == k).sum() for k in range(1, objects + 1)]
            if min(areas) >= MIN_AREA:
                return degrade(rng, jitter_colours(rng, frames)), labels

    def picture(self, rng: Rng, phase: Phase) -> tuple[list[U8], list[U8]]:
        """Draw a moving picture with one of its own objects, label 1."""
        for _ in range(1000):
            still = rng.random() < phase.static
            pick = self.pick(rng, phase, still)
            walk = self.walk(rng, phase, pick, motion=1.0 if still else 0.25)
            masks = own_masks(pick, walk, cv2.BORDER_REFLECT_101)
            if (masks[0] > 127).sum() >= MIN_AREA:
                frames = [
                    w.image(pick.source.frames[t]) for t, w in zip(pick.times, walk, strict=True)
                ]
                return frames, [(m > 127).astype(np.uint8) for m in masks]
        raise nothing_to_see(phase)

    def background(self, rng: Rng, phase: Phase) -> list[U8]:
        """Draw a moving picture in which nothing is tracked."""
        pick = self.pick(rng, phase, still=rng.random() < 0.6)
        height, width = pick.source.frames[0].shape[:2]
        span = min(height / phase.size[0], width / phase.size[1])
        zoom = span * rng.uniform(0.5, 1.0)
        centre = (rng.uniform(0, width), rng.uniform(0, height))
        walk = random_walk(
            rng, phase.frames, centre, zoom, rng.uniform(0.1, 1.0), (height, width), phase.size,
            approach=rng.normal(0, 0.2),
        )  # fmt: skip
        return [w.image(pick.source.frames[t]) for t, w in zip(pick.times, walk, strict=True)]

    def cutout(self, rng: Rng, phase: Phase, label: int, pick: Pick | None = None) -> Layer:
        """Draw an object alone, cut from its picture, that moves on its own and may leave."""
        for _ in range(1000):
            chosen = pick or self.pick(rng, phase, still=rng.random() < 0.7, whole=True)
            walk = self.walk(rng, phase, chosen, motion=rng.uniform(0.5, 2.5), keep=False)
            edit = partial(holes, rng) if rng.random() < 0.3 else None
            alphas = own_masks(chosen, walk, cv2.BORDER_CONSTANT, edit)
            if label == 0 or (alphas[0] > 127).sum() >= MIN_AREA:
                pictures = chosen.source.frames
                images = [w.image(pictures[t]) for t, w in zip(chosen.times, walk, strict=True)]
                return Layer(jitter_colours(rng, images, 0.4), alphas, label)
        raise nothing_to_see(phase)

    def pick(self, rng: Rng, phase: Phase, still: bool, whole: bool = False) -> Pick:
        """Choose an object; a ``whole`` one is not cut off by its picture's border."""
        for attempt in range(1000):
            if attempt and attempt % 20 == 0:
                still = not still
            if still:
                source, times = self.stills[rng.integers(len(self.stills))], [0] * phase.frames
            else:
                source = self.videos[rng.choice(len(self.videos), p=self.shares)]
                times = pick_times(rng, len(source.frames), phase.frames, phase.gap)
            mask = source.masks[times[0]]
            fits = [
                thing
                for thing in source.things[times[0]]
                if thing.area >= 0.004 * mask.size
                and not (whole and (thing.border**2 > 0.1 * thing.area or thing.area < 400))
            ]
            if not fits:
                continue
            thing = fits[rng.integers(len(fits))]
            ys, xs = np.nonzero(mask == thing.id)
            at = rng.integers(len(ys))
            return Pick(source, times, thing, (int(xs[at]), int(ys[at])))
        raise nothing_to_see(phase)

    def walk(
        self, rng: Rng, phase: Phase, pick: Pick, motion: float, keep: bool = True
    ) -> list[Warp]:
        """A walk of the crop over the picked object's picture, of a scale that varies widely."""
        size = pick.source.frames[0].shape[:2]
        span = min(size[0] / phase.size[0], size[1] / phase.size[1])
        # Square root of the share of the crop that the object fills: from small to all of it.
        share = np.exp(rng.uniform(np.log(0.08), np.log(0.95)))
        zoom = np.sqrt(pick.thing.area / (phase.size[0] * phase.size[1])) / share
        if keep:  # a whole picture: no finer than twice its pixels, no wider than itself
            zoom = np.clip(zoom, 0.45 if len(pick.source.frames) == 1 else 0.8, 1.25 * span)
        else:
            zoom = np.clip(zoom, 0.45, 4.0)
        approach = 0.0
        if rng.random() < phase.zoom:
            approach = rng.uniform(-1.1, 1.1)
        return random_walk(
            rng, phase.frames, pick.at, float(zoom), motion, size, phase.size, approach, keep
        )


def own_masks(pick: Pick, walk: list[Warp], border: int, edit: Edit | None = None) -> list[U8]:
    """The object's alphas [H, W] in 0…255 along the walk; ``edit`` changes a still one's shape."""
    own = [pick.source.masks[t] == pick.thing.id for t in pick.times]
    if edit and len(pick.source.frames) == 1:
        own = [edit(own[0])] * len(own)
    return [w.mask(m, border) for w, m in zip(walk, own, strict=True)]


def weigh(labels: U8, objects: int) -> U8:
    """How much each pixel of labels [H, W] counts in the loss: 1, and more where masks are lost.

    2 more within two pixels of a contour; 3 more in gaps of an object that a closing of 13 pixels
    fills, and in parts of it that an opening of 7 pixels removes.
    """
    weights = np.ones(labels.shape, np.uint8)
    for k in range(1, objects + 1):
        own = (labels == k).view(np.uint8)
        band = cv2.dilate(own, DISC5) - cv2.erode(own, DISC5)
        gaps = cv2.morphologyEx(own, cv2.MORPH_CLOSE, DISC13) - own
        thin = own - cv2.morphologyEx(own, cv2.MORPH_OPEN, DISC7)
        weights = np.maximum(weights, 1 + 2 * band + 3 * (gaps | thin))
    return weights


def nothing_to_see(phase: Phase) -> InputError:
    """The error for data without objects."""
    height, width = phase.size
    return InputError(
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


def phase_at(config: TrainConfig, step: int) -> Phase:
    """The curriculum's phase at ``step``."""
    return next(p for p in config.phases if step < p.until * config.steps)


@dataclass(frozen=True)
class Steps(Dataset[Batch]):
    """The batch of every step, for a DataLoader: item n is the batch of step n."""

    config: TrainConfig
    clips: Clips
    rank: int = 0
    world: int = 1

    def __getitem__(self, step: int) -> Batch:
        cv2.setNumThreads(1)
        rng = np.random.default_rng([self.config.seed, step])
        phase = phase_at(self.config, step)
        return self.clips.batch(rng, phase, self.config.occluder, self.rank, self.world)

    def ahead(self, start: int, workers: int) -> Iterator[Batch]:
        """The batches from step ``start`` on, in order; ``workers`` processes draw ahead."""
        steps = range(start, self.config.steps)
        loader = DataLoader(self, None, sampler=steps, num_workers=workers, collate_fn=_as_it_is)
        return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch
