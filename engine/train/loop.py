"""The training loop: clips through the network as at inference, checkpoints that survive a kill."""

from __future__ import annotations

import contextlib
import io
import json
import math
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from engine.errors import ModelError, OutputError
from engine.files import write_atomic
from engine.model import Features, MobileVOS, aggregate, create, upsample_logits
from engine.model.backbones import MobileNetV2
from engine.train.config import Phase, TrainConfig
from engine.train.data import Clips
from engine.train.losses import bootstrapped_cross_entropy, dice, mean_iou
from engine.train.pretrained import load_with_mask_channels, mobilenetv2_imagenet


def unroll(
    model: MobileVOS, frames: Tensor, labels: Tensor, objects: int, supervised: int
) -> list[Tensor]:
    """Segment a batch of clips as at inference: memory is frame 0 and the last prediction.

    frames [B, T, 3, H, W], labels [B, T, H, W] (only frame 0 is looked at) → probabilities
    [B, K+1, H, W] of the last ``supervised`` frames; the frames before run without a gradient.
    """
    batch, length = frames.shape[:2]
    size = frames.shape[-2:]
    owner = torch.arange(batch).repeat_interleave(objects)

    def encode_value(t: int, masks: Tensor, features: Features) -> Tensor:
        """Masks [B, K, H, W] → value [B, K, N, Cv]."""
        others = masks.sum(1, keepdim=True) - masks
        pair = torch.stack([masks, others], 2).flatten(0, 1)
        seen = torch.cat([frames[owner, t], pair], 1)
        value = model.encode_value.encode(seen, features.f16[owner]).float()
        return value.reshape(batch, objects, *value.shape[1:])

    given = torch.stack([labels[:, 0] == k for k in range(1, objects + 1)], 1).float()
    first_key, features = model.encode_query(frames[:, 0])
    first_key, first_value = first_key.float(), encode_value(0, given, features)
    last_key, last_value = first_key, first_value
    slots = torch.tensor([[0, 1]]).expand(objects, 2)
    results = []
    for t in range(1, length):
        with torch.set_grad_enabled(torch.is_grad_enabled() and t >= length - supervised):
            key, features = model.encode_query(frames[:, t])
            key = key.float()
            readout = torch.cat(
                [
                    model.read_memory(
                        key[b],
                        torch.stack([first_key[b], last_key[b]]),
                        torch.stack([first_value[b], last_value[b]]),
                        slots,
                    )
                    for b in range(batch)
                ]
            )
            per_object = Features(*(x[owner] for x in features))
            logits = upsample_logits(model.decode(readout, per_object))
            masks = torch.sigmoid(logits).reshape(batch, objects, *size)
            probabilities = aggregate(masks, dim=1)
            if t >= length - supervised:
                results.append(probabilities)
            if t < length - 1:
                last_key, last_value = key, encode_value(t, probabilities[:, 1:], features)
    return results


def parameter_groups(model: MobileVOS, config: TrainConfig) -> list[dict[str, Any]]:
    """Freeze the query encoder's first stages; a rate for each of pretrained and new parts."""
    encoder = model.encode_query.backbone
    for frozen in (encoder.stem, *list(encoder.stages)[: config.frozen_stages]):
        frozen.requires_grad_(False)
    query = [p for p in encoder.parameters() if p.requires_grad]
    value = list(model.encode_value.backbone.parameters())
    old = {id(p) for p in [*encoder.parameters(), *value]}
    new = [p for p in model.parameters() if id(p) not in old]
    rates = ((query, config.lr_query), (value, config.lr_value), (new, config.lr_new))
    return [{"params": params, "lr": lr, "top": lr} for params, lr in rates]


def phase_at(config: TrainConfig, step: int) -> Phase:
    """The curriculum's phase at ``step``."""
    return next(p for p in config.phases if step < p.until * config.steps)


def rate_at(config: TrainConfig, step: int) -> float:
    """Factor on all rates: linear warm-up, then a cosine down to 2 %."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    x = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * x))


class Trainer:
    """Everything that a checkpoint holds, and one step of training.

    Batch-norm statistics stay those of the pretrained backbones: a batch of a few clips is too
    small to estimate them.
    """

    def __init__(self, config: TrainConfig, clips: Clips, folder: Path, bf16: bool) -> None:
        self.config, self.clips, self.folder, self.bf16 = config, clips, folder, bf16
        torch.manual_seed(config.seed)
        self.model = create(config.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.pretrained and isinstance(self.model.encode_query.backbone, MobileNetV2):
            state = mobilenetv2_imagenet()
            self.model.encode_query.backbone.load_state_dict(state)
            load_with_mask_channels(self.model.encode_value.backbone, state)
        self.model.eval()
        self.ema = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config), weight_decay=config.weight_decay
        )
        self.step = 0
        self.seconds = 0.0

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint; a kill or a full disk leaves the one before. Raises OutputError."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        data = io.BytesIO()
        torch.save(state, data)
        with writing(self.checkpoint):
            write_atomic(self.checkpoint, data.getvalue())

    def resume(self) -> bool:
        """Go on from the checkpoint, if there is one; raises ModelError if it is damaged."""
        if not self.checkpoint.is_file():
            return False
        try:
            state = torch.load(self.checkpoint, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.ema = state["ema"]
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]
        except (RuntimeError, LookupError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise ModelError(
                f"'{self.checkpoint}' is damaged or of another network "
                f"({(str(error).splitlines() or [''])[0]}); delete it to start anew, or choose "
                "another folder with --out"
            ) from error
        return True

    def train_step(self) -> dict[str, float]:
        """Draw a batch, take one optimiser step, and return the figures to log."""
        config, start = self.config, time.perf_counter()
        phase, rate = phase_at(config, self.step), rate_at(config, self.step)
        rng = np.random.default_rng([config.seed, self.step])
        clip, label, objects = self.clips.batch(rng, phase, config.occluder)
        frames, labels = torch.from_numpy(clip), torch.from_numpy(label)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            results = unroll(self.model, frames, labels, objects, phase.supervised)
        entropy = overlap = iou = torch.zeros(())
        for i, probabilities in enumerate(results):
            target = labels[:, phase.frames - len(results) + i]
            entropy = entropy + bootstrapped_cross_entropy(probabilities, target, config.hard)
            overlap = overlap + dice(probabilities, target)
            iou = iou + mean_iou(probabilities, target)
        loss = (entropy + overlap) / len(results)
        for group in self.optimizer.param_groups:
            group["lr"] = group["top"] * rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(trained, config.clip)
        self.optimizer.step()
        keep = min(config.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.ema[name].lerp_(value, 1 - keep)
        self.step += 1
        self.seconds += time.perf_counter() - start
        return {
            "step": self.step,
            "loss": loss.item(),
            "cross_entropy": entropy.item() / len(results),
            "dice": overlap.item() / len(results),
            "iou": iou.item() / len(results),
            "norm": float(norm),
            "rate": rate,
            "seconds": self.seconds,
        }

    def run(self, save_every: float = 120.0) -> None:
        """Train to the end, with a progress bar, a line of JSON a step and checkpoints.

        ``save_every`` is in seconds. A Ctrl-C lets the step finish, saves, and raises
        KeyboardInterrupt; a second one does not wait. Raises OutputError.
        """
        log = self.folder / "log.jsonl"
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if log.is_file():  # lines behind the checkpoint belong to steps that are taken again
                lines = log.read_bytes().splitlines(keepends=True)
                write_atomic(log, b"".join(lines[: self.step]))
        saved = time.monotonic()
        bar = tqdm(total=self.config.steps, initial=self.step, unit="step", smoothing=0.05)
        with bar, finish_step() as stop:
            while self.step < self.config.steps and not stop:
                row = self.train_step()
                with writing(log), log.open("a") as out:
                    out.write(json.dumps({k: round(v, 5) for k, v in row.items()}) + "\n")
                bar.update()
                bar.set_postfix(loss=f"{row['loss']:.3f}", iou=f"{row['iou']:.3f}")
                if time.monotonic() - saved > save_every:
                    self.save()
                    saved = time.monotonic()
            self.save()
        if stop:
            raise KeyboardInterrupt


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating system's error inside the block into an OutputError about ``path``."""
    try:
        yield
    except OSError as error:
        cause = error.__cause__ if isinstance(error, OutputError) else error
        reason = getattr(cause, "strerror", None) or cause
        raise OutputError(
            f"cannot write '{path}' ({reason}); make room, or choose another folder with --out; "
            "the same command goes on from the last checkpoint"
        ) from error


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
