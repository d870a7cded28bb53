"""Checkpoints: what a run can go on from after a kill, and with which configuration it began."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from engine.errors import ModelError, OutputError
from engine.files import write_atomic
from engine.train.config import TrainConfig


def save(path: Path, state: dict[str, Any], config: TrainConfig) -> None:
    """Write ``state`` and the configuration; a kill or a full disk leaves the file before.

    Raises OutputError.
    """
    data = io.BytesIO()
    torch.save(state | {"config": to_json(config)}, data)
    with writing(path):
        write_atomic(path, data.getvalue())


def read(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed. Raises ModelError if it is damaged."""
    with damaged(path):
        state = torch.load(path, weights_only=True, map_location=device)
        if not isinstance(state, dict):
            raise ValueError("not a checkpoint")
        return state


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turn what reading a damaged or foreign checkpoint raises into a ModelError."""
    try:
        yield
    except (RuntimeError, LookupError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"'{path}' is damaged or of another network "
            f"({(str(error).splitlines() or [''])[0]}); delete it to start anew, or choose "
            "another folder with --out"
        ) from error


def to_json(config: TrainConfig) -> str:
    """The configuration as JSON, one field a line."""
    return json.dumps(dataclasses.asdict(config), indent=1)


def differences(recorded: str, config: TrainConfig) -> dict[str, str]:
    """What differs between a recorded configuration and ``config``: field → "before, now ..."."""
    before, now = json.loads(recorded), json.loads(to_json(config))
    return {
        name: f"{name} was {json.dumps(before.get(name))}, now {json.dumps(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }


def check_same(path: Path, recorded: str, config: TrainConfig) -> list[str]:
    """Refuse to go on with another configuration; returns what differs and may.

    Only ``steps`` may: the run becomes longer or shorter, and its cosine with it. Raises
    ModelError that names each other difference.
    """
    found = differences(recorded, config)
    refused = [text for name, text in found.items() if name != "steps"]
    if refused:
        raise ModelError(
            f"'{path}' belongs to another configuration: {'; '.join(refused)}; "
            "delete it to start anew, or choose another folder with --out"
        )
    return list(found.values())


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
