"""One run over a source: frames in, and masks, overlay and summary out."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from engine import __version__
from engine.commands.export import write_exports
from engine.commands.info import versions
from engine.commands.options import SegmentOptions
from engine.commands.results import Results
from engine.errors import (
    DamagedVideoError,
    EngineError,
    InputError,
    OutputError,
    TruncatedVideoError,
)
from engine.media.masks import load_ids
from engine.media.overlay import overlay
from engine.media.record import describe
from engine.media.source import Frame, Source
from engine.media.writer import VideoWriter
from engine.threads import Prefetcher, Worker

RESUME_SECONDS = 5.0
_BAR = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}, {rate_noinv_fmt}, {remaining} left"
_COUNTER = "{n_fmt} frames, {rate_noinv_fmt}"


class Run:
    """The loop over the frames and the work beside it. say, warn: as for `segment`."""

    def __init__(
        self,
        options: SegmentOptions,
        results: Results,
        source: Source,
        frames: Prefetcher[Frame],
        segmenter: Any,
        mask: NDArray[np.uint8],
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self.options, self.results, self.source, self.frames = options, results, source, frames
        self.segmenter, self.mask, self.say, self.warn = segmenter, mask, say, warn
        self.done = -1  # the last frame whose mask is made
        self.count = 0  # frames with a mask, those of an earlier run included
        self.earlier = 0  # of them, those of the earlier run
        self.fingerprint: dict[str, Any] = {
            "input": source.fingerprint(),
            "mask": hashlib.sha256(mask.tobytes()).hexdigest(),
            "start": options.start,
            "every": options.every,
            "size": options.load.size,
            "memory": options.load.memory,
            "tta": options.load.tta,
            "blank_lost": options.load.blank_lost,
            "model": f"{segmenter.model} {segmenter.model_hash}",
            "backend": segmenter.backend,
            "version": __version__,
        }
        self.resumable = self.fingerprint["input"] is not None

    def go(self, first: Frame, resuming: bool) -> None:
        """Work through ``first`` and all frames behind it.

        Raises an EngineError or KeyboardInterrupt after all that was done is safe on disk.
        """
        if resuming:
            self.done, state = self.results.load_resume(self.fingerprint)
            if self.options.end is not None and self.done >= self.options.end:
                raise InputError(
                    f"the run in '{self.options.out}' is done up to frame {self.done} already; "
                    "give a larger --end, or none"
                )
            if self.done >= 0:
                self.segmenter.load_state_dict(state)
                self.warn(f"resuming after frame {self.done}")
        elif self.resumable:
            self.results.save_resume(-1, self.fingerprint, {})
        self.video: VideoWriter | None = None
        if self.options.overlay:
            height, width = first.image.shape[:2]
            fps = self.source.fps / self.options.every
            self.video = VideoWriter(self.results.overlay, (height, width), fps)
        self.worker = Worker()
        self.zero = first.time
        self.began = time.perf_counter()
        status = "complete"
        error: BaseException | None = None
        try:
            self._loop(first)
        except KeyboardInterrupt as caught:
            # Ctrl-C is how one stops a camera; a file is left unfinished by it.
            status, error = ("complete", None) if self.source.live else ("interrupted", caught)
        except TruncatedVideoError as caught:
            status, error = "truncated", caught
        except DamagedVideoError as caught:
            status, error = "damaged", caught
        except EngineError as caught:
            status, error = "failed", caught
        except BaseException:
            self._abandon()
            raise
        self._finish(status, error)
        if error is not None:
            raise error

    def _loop(self, first: Frame) -> None:
        saved = time.perf_counter()
        for frame in self._with_progress(first):
            if frame.index <= self.done:
                self.worker.submit(self._check_again, frame)
                self.count, self.earlier = self.count + 1, self.earlier + 1
                continue
            started = self.done >= 0
            following = self.frames.peek()
            if following is not None:
                self.segmenter.expect(following.image)
            step = self.segmenter.step if started else self.segmenter.start
            ids = step(frame.image) if started else step(frame.image, self.mask)
            text = describe(frame.time, self.segmenter.confidence, self.segmenter.lost)
            self.worker.submit(self._keep, frame, ids, text)
            self.done, self.count = frame.index, self.count + 1
            if time.perf_counter() - saved >= RESUME_SECONDS and self.resumable:
                self._save_resume()
                saved = time.perf_counter()

    def _save_resume(self) -> None:
        # Through the worker's queue, so that the masks it vouches for are written before it.
        state = {name: np.array(value) for name, value in self.segmenter.state_dict().items()}
        self.worker.submit(self.results.save_resume, self.done, self.fingerprint, state)

    def _with_progress(self, first: Frame) -> Iterator[Frame]:
        options, total = self.options, self.source.frame_count
        if options.end is not None:
            total = min(total or options.end, options.end)
        if total is not None:
            total = max(1, len(range(options.start, total, options.every)))
        form = _BAR if total else _COUNTER
        # disable=None: no bar where nobody watches.
        with tqdm(total=total, unit=" frames", bar_format=form, disable=None, leave=False) as bar:
            for frame in self._chain(first):
                yield frame
                bar.update()

    def _chain(self, first: Frame) -> Iterator[Frame]:
        yield first
        yield from self.frames

    def _keep(self, frame: Frame, ids: NDArray[np.uint8], text: dict[str, str]) -> None:
        self.results.keep_mask(frame.index, ids, text)
        self._draw(frame, ids)

    def _check_again(self, frame: Frame) -> None:
        height, width = frame.image.shape[:2]
        self._draw(frame, load_ids(self.results.mask(frame.index), (height, width)))

    def _draw(self, frame: Frame, ids: NDArray[np.uint8]) -> None:
        if self.video is not None:
            self.video.write(overlay(frame.image, ids), frame.time - self.zero)

    def _abandon(self) -> None:
        """After an error of our own, keep the masks and drop the unfinished video."""
        with contextlib.suppress(Exception):
            self.worker.close()
        if self.video is not None:
            self.video.discard()

    def _finish(self, status: str, error: BaseException | None) -> None:
        try:
            self.worker.close()
            if self.video is not None:
                self.video.close()
            self.results.sync()
            self.results.write_summary(self._summary(status, error))
        except OutputError:
            self._abandon()
            if error is None or isinstance(error, KeyboardInterrupt):
                raise
            return
        except EngineError:
            self._abandon()
            raise
        if status in ("complete", "truncated", "damaged"):
            self.results.remove_resume()
        self._tell(status)
        if status in ("complete", "truncated", "damaged"):
            write_exports(self.results, self.options.export, self.say)

    def _tell(self, status: str) -> None:
        rate = (self.count - self.earlier) / (time.perf_counter() - self.began)
        segmenter, out = self.segmenter, self.results
        self.say(
            f"{self.count} frames ({segmenter.stats.fps:.1f} FPS segmenting, {rate:.1f} FPS in "
            f"all) with {segmenter.model} on {segmenter.backend}"
        )
        self.say(f"masks:   {out.masks}")
        if self.video is not None:
            self.say(f"overlay: {out.overlay}")
        self.say(f"summary: {out.summary}")
        if self.options.credit:
            self.say(f"credit:  {self.options.credit}")
        if status == "interrupted":
            self.warn(
                f"interrupted after frame {self.done}; results so far are kept: the same command "
                "with --resume goes on"
            )

    def _summary(self, status: str, error: BaseException | None) -> dict[str, Any]:
        seconds = time.perf_counter() - self.began
        stats, source = self.segmenter.stats, self.source
        summary: dict[str, Any] = {
            "status": status,
            "frames": self.count,
            "frames_resumed": self.earlier,
            "last_frame": self.done,
            "frames_lost": self.segmenter.lost_frames,
            "frames_missing": source.missing,
            "frames_damaged": source.damaged,
            "fps": round(stats.fps, 3),
            "p50_ms": round(stats.p50_ms, 3),
            "p99_ms": round(stats.p99_ms, 3),
            "fps_total": round((self.count - self.earlier) / seconds, 3),
            "seconds_total": round(seconds, 3),
            "model": self.segmenter.model,
            "model_hash": self.segmenter.model_hash,
            "backend": self.segmenter.backend,
            "versions": versions(),
            "source": {
                "name": source.name,
                "width": source.size[1],
                "height": source.size[0],
                "fps": round(source.fps, 3),
                "frames": source.frame_count,
            },
            "options": self.options.told(),
        }
        if isinstance(error, EngineError):
            summary["error"] = str(error)
        if source.live:
            summary["frames_dropped"] = self.frames.dropped
        if self.options.credit:
            summary["credit"] = self.options.credit
        return summary
