"""What a worker times: the engine's `Segmenter`, compiled variants of it, or a rival."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.cases import COMPILED, RIVAL, Case
from engine.memory import EVERY, NONE, RECENT
from engine.options import LoadOptions
from engine.segmenter import Segmenter

U8 = NDArray[np.uint8]


class Subject(Protocol):
    """Frames uint8 [H, W, 3] and masks uint8 [H, W] of ids 1…K; every call is synchronous."""

    def start(self, frame: U8, mask: U8) -> U8:
        """Begin a video with its first frame and mask."""

    def step(self, frame: U8) -> U8:
        """Segment the next frame."""


def load(case: Case, threads: int) -> Subject:
    """Load what the case names; raises an EngineError if it cannot run."""
    if case.backend == RIVAL:
        from bench.rivals import open_rival

        rival: Subject = open_rival(Path(case.checkout), case.checkpoint, threads)
        return rival
    segmenter = Segmenter.load(load_options(case, threads))
    if case.backend in COMPILED:
        compile_stages(network_of(segmenter), case.backend)
    return segmenter


def load_options(case: Case, threads: int) -> LoadOptions:
    """How the case's `Segmenter` is loaded."""
    backend = "reference" if case.backend in COMPILED else case.backend
    return LoadOptions(case.model, backend, case.size, threads, case.weights, case.memory)


def network_of(segmenter: Any) -> Any:
    """The PyTorch network inside a Segmenter on the ``reference`` backend; None in any other."""
    return getattr(segmenter._backend, "model", None)


def compile_stages(model: Any, how: str) -> None:
    """Compile the three stages that have weights; the memory read stays what it is."""
    import torch

    settings: dict[str, Any] = {"dynamic": False}
    if how == "torch-tensorrt":
        importlib.import_module("torch_tensorrt")  # registers the backend that is named below

        settings["backend"] = "torch_tensorrt"
    for stage in ("encode_query", "decode", "encode_value"):
        setattr(model, stage, torch.compile(getattr(model, stage), **settings))


def prefill(segmenter: Segmenter, frames: int) -> None:
    """Give the memory the size that it has after ``frames`` frames, by repeating what it keeps.

    The finite memory has that size already. Content matters to the masks, not to the time.
    """
    if segmenter.memory == "finite":
        return
    state = segmenter.state_dict()
    kept = -(-frames // EVERY)
    have = len(state["keys"]) - RECENT
    index = np.concatenate([np.arange(RECENT), RECENT + np.arange(kept) % have])
    state["keys"], state["values"] = state["keys"][index], state["values"][index]
    objects = len(state["ids"])
    state["kept"] = np.tile(np.arange(RECENT, RECENT + kept, dtype=np.int32), (objects, 1))
    state["held"] = np.full(objects, NONE, np.int32)
    state["doubled"] = np.zeros(objects, np.bool_)
    state["frames"] = np.array(frames)
    segmenter.load_state_dict(state)
