"""The backends, behind one small protocol, and the choice among them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from engine.bundle import DEFAULT_FOLDER
from engine.errors import BackendError, EngineError, MissingExtraError, ModelError, pip_install
from engine.options import LoadOptions
from engine.runtime.base import Backend
from engine.runtime.vnni import why_no_int8
from engine.weights import check_file, find, int8_path, short_hash

#: In the order in which ``auto`` prefers them; it never takes ``reference``.
GPU_BACKENDS = ("tensorrt", "tensorrt-rtx", "onnx-cuda")
BACKENDS = ("cpu", "cpu-int8", *GPU_BACKENDS, "reference")


def status(model: str | None = None, bundles: Path = DEFAULT_FOLDER) -> dict[str, str]:
    """Say for each backend why it cannot run ``model`` here; an empty text means that it can.

    Without a model, any bundle does for the backends that need one.
    """
    return {name: _why_not(name, model, bundles) for name in BACKENDS}


def _why_not(backend: str, model: str | None, bundles: Path) -> str:
    if backend == "cpu":
        return ""
    if backend == "cpu-int8":
        return why_no_int8()
    if backend == "reference":
        missing = [p for p in ("torch", "safetensors") if importlib.util.find_spec(p) is None]
        told = f"{' and '.join(missing)} not installed; run: {pip_install('reference')}"
        return told if missing else ""
    try:
        if backend == "onnx-cuda":
            from engine.runtime.ort import check_cuda

            check_cuda()
        else:
            from engine.runtime.gpu.program import check

            check(backend, model, bundles)
    except EngineError as error:
        return str(error)
    return ""


def choose(
    backend: str, model: str | None = None, bundles: Path = DEFAULT_FOLDER
) -> tuple[str, str]:
    """Resolve ``auto`` for a model. Returns the backend's name and the reason for it.

    Raises BackendError for a name that is not in :data:`BACKENDS`.
    """
    if backend == "auto":
        reasons = {}
        for name in GPU_BACKENDS:
            reasons[name] = _why_not(name, model, bundles)
            if not reasons[name]:
                return name, "the fastest that can run here"
        # Where they have one reason in common, it is said once.
        told = dict.fromkeys(reasons.values())
        names = {why: ", ".join(n for n in GPU_BACKENDS if reasons[n] == why) for why in told}
        why_not = "; ".join(f"not {names[why]}: {why}" for why in told)
        return "cpu", f"which needs nothing beyond the base install ({why_not})"
    if backend not in BACKENDS:
        raise BackendError(
            f"unknown backend '{backend}'; choose one of: auto, {', '.join(BACKENDS)}"
        )
    return backend, "asked for"


def create(options: LoadOptions) -> Backend:
    """Load a model into the backend of the options.

    Raises
    ------
    BackendError, MissingExtraError: the backend cannot run here. ModelError: no such weights, or a
    bundle that fails its checks.
    """
    model, folder, bundles = options.model, Path(options.weights), Path(options.bundles)
    name, _ = choose(options.backend, model, bundles)
    weights, graph = find(model, folder)
    threads = options.threads or 0
    if name in ("cpu", "onnx-cuda"):
        from engine.runtime.ort import OrtBackend

        return OrtBackend(graph, threads, name)
    if name == "cpu-int8":
        return _create_int8(model, folder, threads)
    if name != "reference":
        from engine.runtime.cuda import CudaBackend
        from engine.runtime.gpu.program import Library

        return CudaBackend(Library.open(name, model, weights, bundles, options.expect_sha256))
    try:
        from engine.model import load
        from engine.runtime.reference import ReferenceBackend

        return ReferenceBackend(load(model, weights), threads)
    except ModuleNotFoundError as error:
        raise MissingExtraError("backend 'reference'", str(error.name), "reference") from error


def _create_int8(model: str, folder: Path, threads: int) -> Backend:
    from engine.runtime.ort import OrtBackend

    reason = why_no_int8()
    if reason:
        raise BackendError(f"backend 'cpu-int8' cannot run here: {reason}")
    graph, weights = int8_path(model, folder), find(model, folder)[0]
    remedy = "make it with: python -m engine.export.quantize, or use the backend cpu"
    if not graph.is_file():
        raise ModelError(f"model '{model}' has no int8 graph in '{folder}'; {remedy}")
    backend = OrtBackend(check_file(graph), threads, name="cpu-int8")
    if backend.weights_hash() != short_hash(weights):
        raise ModelError(f"'{graph}' was made from other weights than '{weights}'; {remedy}")
    return backend
