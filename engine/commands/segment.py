"""The command ``segment``: what to do, what is there already, what to start from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.commands.export import write_exports
from engine.commands.loop import Run
from engine.commands.options import SegmentOptions
from engine.commands.prompt import mask_from_box
from engine.commands.results import Results
from engine.errors import InputError
from engine.media.masks import read_mask
from engine.media.open import open_source
from engine.media.source import Frame
from engine.options import LoadOptions
from engine.segmenter import Segmenter
from engine.threads import prefetch

Say = Callable[[str], None]


def segment(
    options: SegmentOptions,
    say: Say,
    warn: Say,
    load: Callable[[LoadOptions], AbstractContextManager[Any]] | None = None,
) -> None:
    """Follow the objects through the source and write the results.

    say: takes lines of results. warn: takes lines of notes and warnings. load: makes the segmenter,
    by default `Segmenter.load`.

    Raises an EngineError, or KeyboardInterrupt on Ctrl-C, after what was done is safe on disk.
    """
    results = Results(options.out)
    resuming = _look_at_earlier_results(results, options, say, warn)
    if resuming is None:
        write_exports(results, options.export, say)
        return
    with (
        contextlib.closing(results),
        contextlib.closing(open_source(options.source)) as source,
    ):
        if options.resume and source.fingerprint() is None:
            raise InputError(f"{source.name} cannot be read again from its start, so not resumed")
        wanted = source.frames(options.start, options.end, options.every)
        with prefetch(wanted, drop_oldest=source.live) as frames:
            first = next(frames)
            mask = _first_mask(options, first, warn)
            with (load or Segmenter.load)(options.load) as segmenter:
                # Only now: what cannot run must not cost the results of an earlier run.
                inputs = [Path(options.source), *([options.mask] if options.mask else [])]
                results.prepare(not (resuming or options.overwrite), options.overwrite, inputs)
                run = Run(options, results, source, frames, segmenter, mask, say, warn)
                run.go(first, resuming)


def _look_at_earlier_results(
    results: Results, options: SegmentOptions, say: Say, warn: Say
) -> bool | None:
    """Return True to resume, False to start at the first frame, None if all is done already."""
    if options.resume and options.overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one of them")
    if not results.exist() or options.overwrite:
        if options.resume:
            warn(f"nothing to resume in '{options.out}': starting at the first frame")
        return False
    if not options.resume:
        raise InputError(
            f"'{options.out}' already holds results; add --resume to go on with them, "
            "--overwrite to replace them, or choose another --out"
        )
    if results.can_resume():
        return True
    summary = results.read_summary()
    if summary.get("status") not in ("complete", "truncated", "damaged"):
        raise InputError(
            f"'{options.out}' holds masks but no point to resume from; replace them with "
            "--overwrite, or choose another --out"
        )
    now, then = options.told(), summary["options"]
    free = ("out", "overlay", "export", "backend", "threads")
    different = sorted(k for k in now if k not in free and now[k] != then.get(k))
    if different:
        raise InputError(
            f"the finished run in '{options.out}' had other options ({', '.join(different)}); "
            "replace it with --overwrite, or choose another --out"
        )
    say(f"'{options.out}' is {summary['status']}: nothing to do")
    return None


def _first_mask(options: SegmentOptions, first: Frame, warn: Say) -> NDArray[np.uint8]:
    if options.box is not None:
        warn("--box: the first mask is a rough guess by GrabCut; a painted --mask does better")
        return mask_from_box(first.image, options.box)
    if options.mask is None:
        raise InputError("no object given; add --mask FIRST.png or --box x,y,w,h")
    height, width = first.image.shape[:2]
    mask = read_mask(options.mask, (height, width), options.resize_mask)
    for note in mask.notes:
        warn(f"note: {note}")
    return mask.ids
