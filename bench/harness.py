"""Drives the workers of a group of cases and makes the rows of results.

Longer than other files: the order of all measurements of a group is to be read in one place."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from bench.accuracy import pooled_iou
from bench.cases import COMPILED, RIVAL, Case, demo_clip, why_not
from bench.pipeline import write_video
from bench.timing import by_turns, summary
from engine.media.masks import write_mask

ROOT = Path(__file__).parent.parent
MEASURED = "measured here"
CLIPS = ("short", "prefilled", "long")
LONG = 10  # times the clip's length
WARM_UP = 3
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    clips: of :data:`CLIPS`. ``short`` plays the clip of ``frames`` frames once; ``prefilled``
    times ``prefilled`` frames with the memory as after one and after ten times the clip; ``long``
    plays all of these. stage_frames, command_frames: of the passes for stage times and for the
    whole command, 0 for none. davis: a folder with ground truth; sequences: of it, None for all.
    """

    clips: tuple[str, ...] = ("short", "prefilled")
    frames: int = 60
    prefilled: int = 20
    stage_frames: int = 5
    command_frames: int = 30
    threads: int = 1
    davis: Path | None = None
    sequences: tuple[str, ...] | None = None


class Failed(Exception):
    """A worker could not do what it was told; the text is the row's status."""


class Process:
    """A worker process: `ask` sends it a command and waits for the answer."""

    def __init__(self, case: Case, spec: dict[str, Any], log: IO[bytes]) -> None:
        self.case = case
        threads = str(spec["threads"])
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", json.dumps({"case": asdict(case)} | spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
        try:
            self.ready = self._answer()
        except Failed:
            self.close()
            raise
        self.cold_start = time.perf_counter() - began

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Run one of the worker's commands; raises Failed."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # its death shows in the answer
            self._process.stdin.write(json.dumps({"do": do} | arguments) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"the process ended with code {self._process.wait()}; see workers.log")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def close(self) -> None:
        """End the worker."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


@dataclass
class Series:
    """What was seen of one case on one clip: milliseconds a frame, and memory now and then."""

    first: int  # number of its first frame in the video
    times: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)
    memory: list[tuple[int, float | None]] = field(default_factory=list)  # frame, resident MB
    peak_mb: float | None = None
    device_mb: float | None = None

    def add(self, answer: dict[str, Any]) -> None:
        """Take over what a worker's ``steps`` told."""
        self.time(answer)
        self.see(answer)

    def time(self, answer: dict[str, Any]) -> None:
        """Only its times."""
        self.times += answer["times"]
        self.device += answer["device"]

    def see(self, answer: dict[str, Any]) -> None:
        """Only its memory."""
        self.memory.append((self.first + len(self.times), answer["rss_mb"]))
        self.peak_mb, self.device_mb = answer["peak_mb"], answer["device_mb"]

    def row(self) -> Row:
        """The figures of a row."""
        result = summary(self.times) | {
            "peak_mb": self.peak_mb,
            "device_mb": self.device_mb,
            "first_frame": self.first,
            "memory_mb": self.memory,
            "status": MEASURED,
        }
        if self.device:
            result["device_p50_ms"] = round(float(np.median(self.device)), 3)
        return result


class Group:
    """The cases of one size and number of objects, measured side by side on the same frames."""

    def __init__(
        self,
        cases: Sequence[Case],
        plan: Plan,
        scratch: Path,
        log: IO[bytes],
        say: Callable[..., Any],
    ) -> None:
        self.cases, self.plan, self.scratch, self.log, self.say = cases, plan, scratch, log, say
        self.processes: dict[Case, Process] = {}
        self.gone: dict[Case, str] = {}  # why a case has no figures, or no more of them
        self.facts: dict[Case, Row] = {case: {} for case in cases}  # equal on all clips
        self.rows: dict[Case, list[Row]] = {case: [] for case in cases}

    def run(self) -> list[Row]:
        """Measure everything; returns the rows in the order of the cases."""
        self._write_clip()
        try:
            self._open()
            self._clips()
            self._accuracy()
        finally:
            for process in self.processes.values():
                process.close()
        self._agreement()
        return list(self._finished())

    def _write_clip(self) -> None:
        plan, case = self.plan, self.cases[0]
        frames, mask = demo_clip(plan.frames, case.size, case.objects)
        self.shape = frames.shape[1:3]
        self.clip, self.mask = self.scratch / "frames.npy", self.scratch / "mask.npy"
        self.video, self.mask_png = self.scratch / "clip.mp4", self.scratch / "mask.png"
        np.save(self.clip, frames)
        np.save(self.mask, mask)
        write_video(self.video, frames)
        write_mask(self.mask_png, mask)

    def _open(self) -> None:
        for number, case in enumerate(self.cases):
            reason = why_not(case)
            if reason:
                self.gone[case] = f"absent: {reason}"
                continue
            self.say(f"load {case}")
            spec = {
                "threads": self.plan.threads,
                "frames": str(self.clip),
                "mask": str(self.mask),
                "masks_out": str(self.scratch / f"masks-{number}.raw"),
            }
            try:
                process = Process(case, spec, self.log)
            except Failed as error:
                self.gone[case] = f"failed: {error}"
                continue
            self.processes[case] = process
            self.facts[case] = {
                "model_hash": process.ready["model_hash"],
                "random_weights": case.random,
                "cold_start_s": round(process.cold_start, 2),
                "width": self.shape[1],
                "height": self.shape[0],
            }

    def _each(self, do: str, **more: Any) -> None:
        """One command to all; a worker that fails drops out."""
        for case in list(self.processes):
            self._ask(case, do, **more)

    def _ask(self, case: Case, do: str, **arguments: Any) -> dict[str, Any]:
        try:
            return self.processes[case].ask(do, **arguments)
        except Failed as error:
            self.gone[case] = f"failed: {error}"
            self.processes.pop(case).close()
            return {}

    def _time(self, clip: str, frames: int, first: int, save: bool = False) -> None:
        """Time all workers by turns and make their rows of ``clip``."""
        series = {case: Series(first) for case in self.processes}

        def run(case: Case, count: int) -> None:
            if case in self.processes:
                self.say(f"{clip}: {case}")
                answer = self._ask(case, "steps", frames=count, save=save)
                if answer:
                    series[case].add(answer)

        by_turns(list(self.processes), frames, run)
        for case in self.processes:
            self.rows[case].append({"clip": clip} | series[case].row())

    def _clips(self) -> None:
        plan = self.plan
        self._each("steps", frames=WARM_UP)
        self._each("restart")
        if "short" in plan.clips or "prefilled" in plan.clips:
            self._time("short", plan.frames - 1, 1, save=True)
        if "prefilled" in plan.clips:
            rivals = [case for case in self.processes if case.backend == RIVAL]
            aside = {case: self.processes.pop(case) for case in rivals}
            self._prefilled()
            self.processes |= aside
            for case in rivals:
                status = "skipped: a rival's memory cannot be prefilled; see --clips long"
                self.rows[case].append({"clip": f"prefilled {LONG}x", "status": status})
        if "long" in plan.clips:
            self._each("restart")
            self._time("long", LONG * plan.frames - 1, 1)
        self._passes()

    def _prefilled(self) -> None:
        """Time all workers with a small and a large memory, these two by turns as well.

        Their ratio is then as free of the machine's drift as that of two backends. What the
        process needs is looked at beforehand, while the memory only grows.
        """
        lengths = [times * self.plan.frames for times in (1, LONG)]
        series: dict[tuple[Case, int], Series] = {}
        for frames in lengths:
            self._each("prefill", frames=frames)
            for case in list(self.processes):
                answer = self._ask(case, "steps", frames=1)
                series[case, frames] = Series(frames + 1)
                if answer:
                    series[case, frames].see(answer)

        def run(subject: tuple[Case, int], count: int) -> None:
            case, frames = subject
            self.say(f"prefilled: {case}")
            for do, more in (("prefill", frames), ("steps", 1), ("steps", count)):
                if case not in self.processes:
                    return
                answer = self._ask(case, do, frames=more)
            if answer:
                series[subject].time(answer)

        by_turns(list(series), self.plan.prefilled, run)
        for (case, frames), seen in series.items():
            if case in self.processes:
                clip = f"prefilled {frames // self.plan.frames}x"
                self.rows[case].append({"clip": clip} | seen.row())
        self._each("prefill", frames=lengths[-1])

    def _passes(self) -> None:
        """Stage times and the whole command's speed, behind all that is timed and weighed.

        The stages of the infinite memory are those at its largest; the rest goes to the first row.
        """
        plan = self.plan
        for case, process in self.processes.items():
            first, last = self.rows[case][0], self.rows[case][-1]
            if plan.stage_frames:
                row = last if case.memory == "infinite" else first
                row |= self._try(case, process, "stages", frames=plan.stage_frames)
            # A compiled network would be compiled again for the command.
            if plan.command_frames and case.backend not in COMPILED:
                first |= self._try(
                    case,
                    process,
                    "command",
                    video=str(self.video),
                    mask=str(self.mask_png),
                    frames=min(plan.command_frames, plan.frames),
                )

    def _try(self, case: Case, process: Process, do: str, **arguments: Any) -> dict[str, Any]:
        """As `_ask`, but what fails is only noted: the row's times are good without it."""
        self.say(f"{do}: {case}")
        try:
            return process.ask(do, **arguments)
        except Failed as error:
            return {f"{do}_failed": str(error)}

    def _accuracy(self) -> None:
        plan = self.plan
        if not plan.davis:
            return
        for case, process in self.processes.items():
            if case.random:
                continue
            told = self._try(
                case,
                process,
                "accuracy",
                davis=str(plan.davis),
                sequences=plan.sequences,
                laps=LONG if "long" in plan.clips else 1,
            )
            self.facts[case] |= told

    def _agreement(self) -> None:
        """IoU with the reference's masks of the short clip, under the same memory policy."""
        masks: dict[Case, np.ndarray[Any, np.dtype[np.uint8]]] = {}
        for number, case in enumerate(self.cases):
            path = self.scratch / f"masks-{number}.raw"
            if path.is_file() and case not in self.gone:
                masks[case] = np.fromfile(path, np.uint8).reshape(-1, *self.shape)
        for case, ours in masks.items():
            for other, theirs in masks.items():
                same = (other.model, other.memory) == (case.model, case.memory)
                if other.backend == "reference" and same and self.rows[case]:
                    self.rows[case][0]["iou"] = round(pooled_iou(ours, theirs), 5)

    def _finished(self) -> Iterator[Row]:
        for case in self.cases:
            rows = self.rows[case] if case not in self.gone else []
            for row in rows or [{"clip": "", "status": self.gone.get(case, "skipped")}]:
                yield case.key | row | self.facts[case]
