"""The command ``validate``: a bundle's files, and its graphs against PyTorch.

Writes ``validation.json`` into the bundle: per output the largest and the RMS difference, values
that are not finite, and the dtype; mask IoU over a clip; the dtypes and shapes at each boundary.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.build.targets import device_target
from engine.bundle import VALIDATION, Bundle, Tensor, file_sha256, load_bundle
from engine.errors import EngineError, MissingExtraError, ModelError, one_line
from engine.files import write_atomic
from engine.weights import find

NEEDS = ("torch", "safetensors", "onnx")


def validate(
    folder: Path,
    weights: Path,
    frames: int,
    expect_sha256: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Validate a bundle. Returns what is written.

    Raises ModelError for a damaged bundle, other weights than it was built of, or graphs that do
    not agree; MissingExtraError.
    """
    bundle = load_bundle(folder, expect_sha256)
    m = bundle.manifest
    say(f"{m.name}: {len(m.files)} files have their sizes and hashes; manifest {bundle.sha256}")
    for package in NEEDS:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("validate", package, "build")
    path, _ = find(m.model, weights)
    if file_sha256(path) != m.model_sha256:
        raise ModelError(
            f"the bundle was built of other weights than '{path}'; give theirs with --weights, or "
            f"build it again: {m.rebuild_command()}"
        )
    dtypes = _boundaries(bundle)
    for line in dtypes:
        say(f"  {line}")
    try:
        figures, failures, engines = _compare(bundle, path, frames, say)
    except EngineError:
        raise
    except Exception as error:  # graphs can be anything, if their hashes are right
        raise ModelError(
            f"the graphs of '{folder}' cannot be run ({one_line(error)}); build the bundle again: "
            f"{m.rebuild_command()}"
        ) from error
    result = {
        "manifest_sha256": bundle.sha256,
        "onnxruntime": figures,
        "engines": engines,
        "boundaries": dtypes,
        "failures": failures,
    }
    write_atomic(folder / VALIDATION, (json.dumps(result, indent=1) + "\n").encode())
    if failures:
        raise ModelError(
            f"'{folder}' does not agree with PyTorch: {'; '.join(failures)}; do not use it, and "
            "build with --fp32"
        )
    say(f"  valid; the figures are in {folder / VALIDATION}")
    return result


def _compare(
    bundle: Bundle, weights: Path, frames: int, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[str], Any]:
    """Compare each set of graphs, and the engines where they can run, with PyTorch.

    Returns the graphs' figures, what fails, and the engines' figures or why there are none.
    """
    from engine.build.parity import Parity, compare, table
    from engine.build.runners import EngineStages, Runner
    from engine.data.clips import demo_clip
    from engine.model import load

    m = bundle.manifest
    model, clip = load(m.model, weights), demo_clip(m.size, frames)
    failures: list[str] = []

    def one(what: str, graphs: dict[str, bytes], runner: Runner | None) -> Parity:
        found = compare(model, graphs, clip, m.objects, m.precision, runner)
        say(f"  {what} against PyTorch in fp32:")
        for line in table(found):
            say(line)
        bad = sum(d.not_finite for outputs in found.stages.values() for d in outputs.values())
        say(f"    values that are not finite: {bad}")
        failures.extend(f"{what}: {failure}" for failure in found.failures())
        return found

    figures: dict[str, Any] = {}
    engines: Any = _why_not(bundle)
    here = device_target()
    for files, targets in _forms(bundle).items():
        graphs = {s: bundle.path(f).read_bytes() for s, f in zip(m.stages, files, strict=True)}
        names = ", ".join(targets)
        found = one(f"graphs for {names} in ONNX Runtime", graphs, None)
        figures[",".join(targets)] = found.summary()
        if not engines and here in targets:
            with EngineStages(bundle) as runner:
                engines = one(f"engines for {here}", graphs, runner).summary()
    if isinstance(engines, str):
        say(f"  engines: {engines}")
    return figures, failures, engines


def _forms(bundle: Bundle) -> dict[tuple[str, ...], list[str]]:
    """The stages' ONNX files → the targets that were built from just these."""
    found: dict[tuple[str, ...], list[str]] = {}
    for target in bundle.manifest.targets:
        files = tuple(stage.onnx[target] for stage in bundle.manifest.stages.values())
        found.setdefault(files, []).append(target)
    return found


def _boundaries(bundle: Bundle) -> list[str]:
    """Every input and output with its dtype and shape."""

    def line(stage: str, way: str, name: str, t: Tensor) -> str:
        return f"{stage} {way} {name}: {t.dtype} {list(t.shape)}"

    return [
        line(stage, way, name, tensor)
        for stage, s in bundle.manifest.stages.items()
        for way, tensors in (("in", s.inputs), ("out", s.outputs))
        for name, tensor in tensors.items()
    ]


def _why_not(bundle: Bundle) -> str:
    """Why the engines cannot run here; empty if they can."""
    here, targets = device_target(), ", ".join(bundle.manifest.targets)
    if here is None:
        return "not run: there is no NVIDIA GPU here (no driver or no device)"
    if here not in bundle.manifest.targets:
        return f"not run: they are for {targets}, the GPU here is {here}"
    return ""
