"""One subject in a process of its own: ``python -m bench.worker SPEC``, driven through pipes.

So each row has its own peak memory, thread pool and cold start, and a rival cannot disturb the
others. Reads a JSON object a line from stdin, answers with one a line on what was stdout; whatever
the subject prints goes to stderr.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from bench.cases import RIVAL, Case, lap
from bench.subjects import load, prefill
from engine.segmenter import Segmenter


class Worker:
    """Runs the commands: each public method is one; what it returns is the answer."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.case = Case(**spec["case"])
        self.threads: int = spec["threads"]
        self.clip = Clip(Path(spec["frames"]))
        self.mask = np.load(spec["mask"])
        self.masks_file = Path(spec["masks_out"])
        self.at = 0  # index of the next frame in the endless clip
        self.subject = load(self.case, self.threads)
        self.subject.start(self._frame(0), self.mask)

    def ready(self) -> dict[str, Any]:
        """The first mask is made."""
        return {"model_hash": getattr(self.subject, "model_hash", None), **memory()}

    def restart(self) -> dict[str, Any]:
        """Begin the clip again."""
        self.subject.start(self._frame(0), self.mask)
        self.at = 1
        return {}

    def steps(self, frames: int, save: bool = False) -> dict[str, Any]:
        """Step ``frames`` frames; ``save`` appends their masks to a file, outside the times."""
        times, device = [], []
        clock = device_clock()
        for _ in range(frames):
            frame = self._next()
            began = time.perf_counter()
            mask, on_device = clock(self.subject.step, frame)
            times.append((time.perf_counter() - began) * 1e3)
            if on_device is not None:
                device.append(on_device)
            if save:
                with self.masks_file.open("ab") as file:
                    file.write(np.ascontiguousarray(mask, np.uint8).tobytes())
        return {"times": times, "device": device, **memory()}

    def prefill(self, frames: int) -> dict[str, Any]:
        """Let the memory be as after ``frames`` frames."""
        assert isinstance(self.subject, Segmenter)
        prefill(self.subject, frames)
        return {}

    def stages(self, frames: int) -> dict[str, Any]:
        """Milliseconds a stage."""
        if self.case.backend == RIVAL:
            return {"stages": {}, "stages_how": "a rival's stages are its own"}
        from bench.stages import measure

        def drive(subject: Any, count: int) -> list[float]:
            times = []
            for _ in range(count):
                frame, began = self._next(), time.perf_counter()
                subject.step(frame)
                times.append((time.perf_counter() - began) * 1e3)
            return times

        result, how = measure(self.case, self.subject, self.threads, drive, frames)
        return {"stages": result, "stages_how": how}

    def command(self, video: str, mask: str, frames: int) -> dict[str, Any]:
        """FPS of ``python -m engine segment``: decoding, masks and overlay on disk included.

        From the first frame to the last file, without loading; beside it, FPS of its steps alone.
        """
        if self.case.backend == RIVAL:
            return {}
        from bench.pipeline import command_fps

        return command_fps(self.subject, video, Path(mask), frames)

    def accuracy(self, davis: str, sequences: list[str] | None, laps: int) -> dict[str, Any]:
        """J&F on a DAVIS folder."""
        from bench.accuracy import score

        return score(self.subject, Path(davis), sequences, laps)

    def _frame(self, index: int) -> Any:
        return self.clip[lap(index, len(self.clip))]

    def _next(self) -> Any:
        frame = self._frame(self.at)
        self.at += 1
        return frame


class Clip:
    """The frames of a NumPy file [T, H, W, 3] uint8, each read when it is asked for.

    Not mapped: pages that were looked at would count to the memory of the process.
    """

    def __init__(self, path: Path) -> None:
        header = np.load(path, mmap_mode="r")
        self.path, self.offset, self.shape = path, header.offset, header.shape

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        size = math.prod(self.shape[1:])
        start = self.offset + index * size
        return np.fromfile(self.path, np.uint8, size, offset=start).reshape(self.shape[1:])


def memory() -> dict[str, float | None]:
    """Resident and peak resident memory of this process, and its GPU memory, in MB."""
    return {"rss_mb": _kilobytes("VmRSS"), "peak_mb": _kilobytes("VmHWM"), "device_mb": device_mb()}


def _kilobytes(field: str) -> float | None:
    # Not getrusage: its peak may be that of the parent, from before this program was loaded.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    value = next((line.split()[1] for line in lines if line.startswith(field + ":")), None)
    return None if value is None else round(int(value) * 1024 / 1e6, 1)


def device_mb() -> float | None:
    """GPU memory that the driver counts to this process, in MB; None without such a driver."""
    if not any(name in sys.modules for name in ("torch", "cuda.bindings", "onnxruntime")):
        return None
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    for line in told.splitlines():
        pid, _, used = line.partition(",")
        if pid.strip() == str(os.getpid()) and used.strip().isdecimal():
            return int(used) * 1.048576
    return None


def device_clock() -> Callable[..., tuple[Any, float | None]]:
    """A function that calls another one and returns its result and its milliseconds on the GPU.

    By CUDA events on PyTorch's stream; None where no PyTorch on a GPU is in the process. The wall
    clock is right without them, since a step gives its mask only when it is done.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return lambda call, *args: (call(*args), None)

    def timed(call: Callable[..., Any], *args: Any) -> tuple[Any, float | None]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = call(*args)
        end.record()
        end.synchronize()
        return result, begin.elapsed_time(end)

    return timed


def serve(worker: Worker, commands: TextIO, answers: TextIO) -> None:
    """Answer commands until there are no more."""
    answer(answers, worker.ready())
    for line in commands:
        order = json.loads(line)
        try:
            answer(answers, getattr(worker, order.pop("do"))(**order))
        except Exception as error:  # whatever a rival raises is a row's status, not ours
            answer(answers, {"error": told(error)})


def told(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def answer(answers: TextIO, content: dict[str, Any]) -> None:
    """Send one answer."""
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def main() -> None:
    """Load the subject of the specification in argv and serve."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", scratch)
        try:
            worker = Worker(json.loads(sys.argv[1]))
        except Exception as error:
            answer(answers, {"error": told(error)})
            return
        serve(worker, sys.stdin, answers)


if __name__ == "__main__":
    main()
