"""The backends, behind one small protocol, and the choice among them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from engine.errors import BackendError, MissingExtraError, ModelError
from engine.runtime.base import Backend
from engine.weights import FOLDER, file_hash, find, int8_path

BACKENDS = ("cpu", "cpu-int8", "reference")


def status() -> dict[str, str]:
    """Why each backend can or cannot run here; an empty text means that it can."""
    missing = [p for p in ("torch", "safetensors") if importlib.util.find_spec(p) is None]
    hint = "run: pip install 'mobilevos-engine[reference]'"
    return {
        "cpu": "",
        "cpu-int8": "",
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
    if name == "cpu-int8":
        return _create_int8(model, folder, threads)
    try:
        from engine.model import load
        from engine.runtime.reference import ReferenceBackend

        return ReferenceBackend(load(model, weights), threads)
    except ModuleNotFoundError as error:
        raise MissingExtraError("backend 'reference'", str(error.name), "reference") from error


def _create_int8(model: str, folder: Path, threads: int) -> Backend:
    from engine.runtime.ort import OrtBackend

    graph, weights = int8_path(model, folder), find(model, folder)[0]
    remedy = "make it with: python -m engine.quantize, or use the backend cpu"
    if not graph.is_file():
        raise ModelError(f"model '{model}' has no int8 graph in '{folder}'; {remedy}")
    backend = OrtBackend(graph, threads, name="cpu-int8")
    if backend.weights_hash() != file_hash(weights):
        raise ModelError(f"'{graph}' was made from other weights than '{weights}'; {remedy}")
    return backend
