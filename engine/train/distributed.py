"""Where a training process runs: its device, and its place among others started by torchrun."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from engine.errors import BackendError


@dataclass(frozen=True)
class Place:
    """Process ``rank`` of ``size``; convolutions run in ``precision``, fp32 for none of the others.

    With fp16 the loss is scaled so that small gradients survive; bf16 has the range of fp32.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: torch.dtype = torch.float32
    rank: int = 0
    size: int = 1

    def autocast(self) -> torch.autocast:
        """Run convolutions and products in ``precision`` inside the block."""
        mixed = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision if mixed else None, enabled=mixed)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss where ``precision`` is fp16; else it passes everything through."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)

    def share(self, task: nn.Module) -> nn.Module:
        """``task``, with gradients that are the mean over the processes where there are several."""
        if self.size == 1:
            return task
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(task, device_ids=devices)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process."""
        if self.size == 1:
            return flag
        votes = torch.tensor(int(flag), device=self.device)
        distributed.all_reduce(votes)
        return bool(votes)


@contextlib.contextmanager
def place(device: str = "cpu", full: bool = False) -> Iterator[Place]:
    """Find this process's place, and leave the group at the end.

    ``device``: cpu or cuda. ``full``: fp32 throughout; otherwise bf16 or, on GPUs older than
    Ampere, fp16. Raises BackendError without a usable GPU.
    """
    rank, size = (int(os.environ.get(n, d)) for n, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    at = torch.device(device)
    if at.type == "cuda":
        if not torch.cuda.is_available():
            raise BackendError(
                "--device cuda needs an NVIDIA GPU and a PyTorch built for CUDA; PyTorch finds none"
            )
        at = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(at)
    half = at.type == "cuda" and torch.cuda.get_device_capability(at) < (8, 0)
    precision = torch.float32 if full else torch.float16 if half else torch.bfloat16
    if size > 1:
        distributed.init_process_group("nccl" if at.type == "cuda" else "gloo")
    try:
        yield Place(at, precision, rank, size)
    finally:
        if size > 1:
            distributed.destroy_process_group()
