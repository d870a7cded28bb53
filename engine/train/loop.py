"""The training loop: batches, steps, checkpoints that survive a kill, a line of log a step."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from engine.files import write_atomic
from engine.train import checkpoint
from engine.train.config import TrainConfig
from engine.train.data import Batch, Clips, Steps, phase_at
from engine.train.distributed import Place
from engine.train.fast import speed_up
from engine.train.features import Imitation
from engine.train.follow import Following, asks_teacher
from engine.train.start import begin, load_teacher


def rate_at(config: TrainConfig, step: int) -> float:
    """Factor on all rates: linear warm-up, a plateau, then a cosine down to 2 %."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    begin = max(config.warmup, round(config.steps * (1 - config.decay)))
    x = max(0, step - begin) / max(1, config.steps - begin)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * x))


def make_task(config: TrainConfig) -> tuple[Following | Imitation, str]:
    """The network in its start, with its losses and teacher; and what it starts from, in words."""
    model, says = begin(config)
    if config.stage == "features":
        if config.teacher is None:
            raise ValueError("stage 'features' needs a teacher")
        return Imitation(model, load_teacher(config.teacher)), says
    asked = config.teacher if asks_teacher(config.distil) else None
    return Following(model, load_teacher(asked) if asked else None, config), says


class Trainer:
    """Everything that a checkpoint holds, and one step of training.

    ``says``: what the network starts from. Of several processes (``place``) each has its own clips
    and the same weights; the first one writes.
    """

    def __init__(
        self,
        config: TrainConfig,
        clips: Clips,
        folder: Path,
        place: Place | None = None,
        workers: int = 0,
    ) -> None:
        self.config, self.clips, self.folder = config, clips, folder
        self.place, self.workers = place or Place(), workers
        self.batches: Iterator[Batch] | None = None
        torch.manual_seed(config.seed)
        self.task, self.says = make_task(config)
        self.task.to(self.place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for teacher in self.task.frozen:
            teacher.to(self.place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = self.task.network
        if self.place.device.type == "cpu":
            speed_up(self.task)
        self.ema = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.task.groups(config), weight_decay=config.weight_decay, fused=True
        )
        self.scaler = self.place.scaler()
        self.shared = self.place.share(self.task)
        self.step = 0
        self.seconds = 0.0

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint; a kill or a full disk leaves the one before. Raises OutputError."""
        state = {
            "model": self.network.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "starts": self.says,
        }
        checkpoint.save(self.checkpoint, state, self.config)

    def resume(self) -> list[str]:
        """Go on from the checkpoint, if there is one; returns what to tell the user, or nothing.

        Raises ModelError if it is damaged, or of another configuration in more than ``steps``.
        """
        if not self.checkpoint.is_file():
            return []
        state = checkpoint.read(self.checkpoint, self.place.device)
        with checkpoint.damaged(self.checkpoint):
            recorded = state["config"]
        changed = checkpoint.check_same(self.checkpoint, recorded, self.config)
        with checkpoint.damaged(self.checkpoint):
            self.network.load_state_dict(state["model"])
            self.ema = state["ema"]
            self.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"]:  # empty unless it was fp16
                self.scaler.load_state_dict(state["scaler"])
            self.step, self.seconds = state["step"], state["seconds"]
            self.batches = None
            self.says = state["starts"]
        return [f"resumed at step {self.step} of {self.config.steps}", *changed]

    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw the step's batch; the loss and its parts."""
        config, place = self.config, self.place
        if self.batches is None:
            steps = Steps(config, self.clips, place.rank, place.size)
            self.batches = steps.ahead(self.step, self.workers)
        batch = next(self.batches)
        with place.autocast():
            loss, parts = self.shared(batch, phase_at(config, self.step).supervised)
        return loss, parts

    def train_step(self) -> dict[str, float]:
        """Draw a batch, take one optimiser step, and return the figures to log."""
        config, start = self.config, time.perf_counter()
        rate = rate_at(config, self.step)
        loss, parts = self.loss()
        for group in self.optimizer.param_groups:
            group["lr"] = group["top"] * rate
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        trained = [p for p in self.task.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(trained, config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        keep = min(config.ema, (1 + self.step) / (10 + self.step))
        now = self.network.state_dict()
        soft = [name for name, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.ema[n] for n in soft], [now[n] for n in soft], 1 - keep)
        for name in now.keys() - set(soft):
            self.ema[name].copy_(now[name])
        self.step += 1
        self.seconds += time.perf_counter() - start
        return {
            "step": self.step,
            "loss": loss.item(),
            **{name: part.item() for name, part in parts.items()},
            "norm": float(norm),
            "rate": rate,
            "seconds": self.seconds,
        }

    def run(self, save_every: float = 120.0) -> None:
        """Train to the end, with a progress bar, a line of JSON a step and checkpoints.

        ``save_every`` is in seconds. A Ctrl-C lets the step finish, saves, and raises
        KeyboardInterrupt; a second one does not wait. Raises OutputError.
        """
        first = self.place.rank == 0
        log = self.folder / "log.jsonl"
        if first:
            self.open_log(log)
        saved = time.monotonic()
        bar = tqdm(
            total=self.config.steps, initial=self.step, unit="step", smoothing=0.05,
            disable=not first,
        )  # fmt: skip
        with bar, finish_step() as asked:
            stop = False
            while self.step < self.config.steps and not stop:
                row = self.train_step()
                stop = self.place.any(bool(asked))
                if not first:
                    continue
                with checkpoint.writing(log), log.open("a") as out:
                    out.write(json.dumps({k: round(v, 5) for k, v in row.items()}) + "\n")
                bar.update()
                bar.set_postfix(loss=f"{row['loss']:.3f}")
                if time.monotonic() - saved > save_every:
                    self.save()
                    saved = time.monotonic()
            if first:
                self.save()
        if stop:
            raise KeyboardInterrupt

    def open_log(self, log: Path) -> None:
        """Cut the log back to the checkpoint's step, and write down what is run beside it."""
        with checkpoint.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if log.is_file():  # lines behind the checkpoint belong to steps that are taken again
                lines = log.read_bytes().splitlines(keepends=True)
                write_atomic(log, b"".join(lines[: self.step]))
            about: dict[str, Any] = {
                "starts_from": self.says,
                "torch": torch.__version__,
                "device": str(self.place.device),
                "precision": str(self.place.precision).removeprefix("torch."),
                "processes": self.place.size,
                "config": json.loads(checkpoint.to_json(self.config)),
            }
            write_atomic(self.folder / "run.json", json.dumps(about, indent=1).encode())


@contextlib.contextmanager
def finish_step() -> Iterator[list[int]]:
    """Collect a first Ctrl-C in the list instead of raising it: half a step must not be saved."""
    asked: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
