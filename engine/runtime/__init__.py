"""The backends, behind one small protocol, and the choice among them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from engine.errors import BackendError, MissingExtraError
from engine.runtime.base import Backend
from engine.weights import FOLDER, find

BACKENDS = ("cpu", "reference")


def status() -> dict[str, str]:
    """Why each backend can or cannot run here; an empty text means that it can."""
    missing = [p for p in ("torch", "safetensors") if importlib.util.find_spec(p) is None]
    hint = "run: pip install 'mobilevos-engine[reference]'"
    return {
        "cpu": "",
        "reference": f"{' and '.join(missing)} not installed; {hint}" if missing else "",
    }


def choose(backend: str) -> tuple[str, str]:
    """Resolve ``auto``; returns the backend's name and the reason for it.

    Raises BackendError for a name that is not in :data:`BACKENDS`.
    """
    if backend == "auto":
        return "cpu", "which needs nothing beyond the base install"
    if backend not in BACKENDS:
        raise BackendError(
            f"unknown backend '{backend}'; choose one of: auto, {', '.join(BACKENDS)}"
        )
    return backend, "asked for"


def create(backend: str, model: str, folder: Path = FOLDER, threads: int = 0) -> Backend:
    """Load ``model`` from ``folder`` into a backend; ``threads`` of 0 means one a core.

    Raises
    ------
    BackendError, MissingExtraError: the backend cannot run here. ModelError: no such weights.
    """
    name, _ = choose(backend)
    weights, graph = find(model, folder)
    if name == "cpu":
        from engine.runtime.ort import OrtBackend

        return OrtBackend(graph, threads)
    try:
        from engine.model import load
        from engine.runtime.reference import ReferenceBackend

        return ReferenceBackend(load(model, weights), threads)
    except ModuleNotFoundError as error:
        raise MissingExtraError("backend 'reference'", str(error.name), "reference") from error
