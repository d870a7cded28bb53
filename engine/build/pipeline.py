"""Build what an NVIDIA GPU runs: ``python -m engine.build --fp16``.

Weights → typed ONNX stages → a check in ONNX Runtime that they agree with PyTorch (a build stops
where they do not) → TensorRT engines → the kernels' cubins → a bundle per model in
``build/bundles/``. With TensorRT for RTX it needs no GPU. See ``engine/bundle.py``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import __version__, bundle
from engine.build.contents import cubins, engines
from engine.build.options import Job, Options, parse
from engine.build.targets import TURING, choose_runtime, choose_targets, engine_groups
from engine.build.targets import load as load_tensorrt
from engine.errors import MissingExtraError, ModelError, run
from engine.files import write_atomic
from engine.weights import available, find

if TYPE_CHECKING:
    import onnx

    from engine.model import MobileVOS

NEEDS = ("torch", "safetensors", "onnx", "onnxscript", "triton")
_MB = 1e6

Say = Callable[[str], None]


def build(options: Options, say: Say = print) -> list[Path]:
    """Build a bundle for each model and bucket. Returns their folders.

    Raises
    ------
    ModelError: no weights, or a graph that does not agree with PyTorch. MissingExtraError.
    BackendError: TensorRT or Triton refuses. InputError: a target that cannot be built.
    """
    names = _models(options)
    runtime, why = choose_runtime(options.runtime)
    version = load_tensorrt(runtime).__version__
    say(f"runtime {runtime} {version}: {why}")
    targets, why = choose_targets(runtime, options.targets)
    say(f"targets {', '.join(targets)}: {why}")
    from engine.data.clips import demo_clip

    job = Job(options, runtime, version, targets, demo_clip(options.size, options.frames))
    made = [_build_one(job, name, k, say) for name in names for k in options.objects]
    for folder in made:
        say(f"{folder}")
    return made


def print_layer_reports(options: Options, say: Say = print) -> None:
    """Print each model's costs, bounds and what TensorRT would reformat; builds nothing."""
    from engine.cost.report import ReadShape, report
    from engine.export.stages import stage_graphs
    from engine.model import load

    for name in _models(options):
        model = load(name, find(name, options.weights)[0])
        for k in options.objects:
            graphs = stage_graphs(model, options.size, k, options.precision)
            tokens = options.size[0] * options.size[1] // 256
            read = ReadShape(tokens, model.config.key_dim, model.config.value_dim, k)
            say(f"# {name}, {options.size[0]}x{options.size[1]}, {k} object(s)\n")
            say(report(graphs, options.precision, read))


def _models(options: Options) -> tuple[str, ...]:
    """The models to build; raises MissingExtraError or ModelError if they cannot be."""
    for package in NEEDS:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("building", package, "build")
    names = options.models or tuple(available(options.weights))
    if not names:
        raise ModelError(f"no trained weights in '{options.weights}'; give their folder: --weights")
    for name in names:
        find(name, options.weights)
    return names


def _build_one(job: Job, name: str, objects: int, say: Say) -> Path:
    from engine.model import load

    options = job.options
    seconds: dict[str, float] = {}
    say(f"\n{name}, {options.size[0]}x{options.size[1]}, {objects} object(s), {options.precision}")
    weights, _ = find(name, options.weights)
    model = load(name, weights)
    with _timed("export", seconds, say):
        graphs = export(model, options, objects)
    with _timed("parity", seconds, say):
        parity = check_agreement(name, model, graphs, job, objects, say)
    with _timed("engines", seconds, say):
        built = {stage: engines(job, stage, forms, say) for stage, forms in graphs.items()}
    with _timed("kernels", seconds, say):
        dims = model.config.key_dim, model.config.value_dim
        kernels, code = cubins(options.precision, job.targets, objects, dims)
    files = code | {name: data for _, made in built.values() for name, data in made.items()}
    low_high = None
    if options.dynamic:
        low, high = options.dynamic
        low_high = ((low, low), (high, high))
    manifest = bundle.Manifest(
        model=name,
        model_sha256=bundle.file_sha256(weights),
        precision=options.precision,
        runtime=job.runtime,
        runtime_version=job.version,
        size=options.size,
        objects=objects,
        dynamic=low_high,
        targets=job.targets,
        versions=versions(),
        stages={stage: told for stage, (told, _) in built.items()},
        kernels=kernels,
        parity=parity,
        files={},
    )
    folder = bundle.write_bundle(options.out, manifest, files)
    total = sum(map(len, files.values())) / _MB
    say(f"  {len(files)} files, {total:.1f} MB, {sum(seconds.values()):.0f} s")
    _store_log(folder, job, seconds)
    return folder


def export(
    model: MobileVOS, options: Options, objects: int
) -> dict[str, dict[str, onnx.ModelProto]]:
    """The stages' graphs: stage → form → graph; the form is ``""`` or a target with its own."""
    from engine.export.passes import for_turing
    from engine.export.stages import stage_graphs

    graphs = stage_graphs(model, options.size, objects, options.precision, bool(options.dynamic))
    forms = {stage: {"": graph} for stage, graph in graphs.items()}
    if not options.dynamic:  # it needs the shapes
        for stage, graph in graphs.items():
            forms[stage][TURING] = for_turing(graph)
    return forms


def check_agreement(
    name: str,
    model: MobileVOS,
    graphs: dict[str, dict[str, onnx.ModelProto]],
    job: Job,
    objects: int,
    say: Say,
) -> dict[str, Any]:
    """Compare each form of the graphs that is built with PyTorch; returns the figures.

    Raises ModelError with the figures if they do not agree.
    """
    from engine.build.parity import check, compare, table

    figures: dict[str, Any] = {}
    for group in engine_groups(job.targets):
        raw = {
            stage: forms.get(group[0], forms[""]).SerializeToString()
            for stage, forms in graphs.items()
        }
        clip = job.clip
        if figures:  # the same network in another form: two frames tell
            clip = replace(clip, images=clip.images[:2])
        found = compare(model, raw, clip, objects, job.options.precision)
        say(f"  against PyTorch in fp32, graphs for {', '.join(group)}:")
        for line in table(found):
            say(line)
        check(found, f"the graph of {name}")
        figures[",".join(group)] = found.summary()
    return figures


def versions() -> dict[str, str]:
    """Return the versions that the bundle was made with."""
    packages = ("onnx", "onnxruntime", "onnxscript", "torch", "triton")
    found = {p: importlib.metadata.version(p) for p in packages}
    return {"mobilevos-engine": __version__, "python": platform.python_version(), **found}


def _store_log(folder: Path, job: Job, seconds: dict[str, float]) -> None:
    """Write the durations beside the bundle: inside they would change its hash."""
    log = {
        "bundle": folder.name,
        "seconds": {k: round(v, 1) for k, v in seconds.items()},
        "machine": f"{platform.system()} {platform.machine()}",
        "runtime": f"{job.runtime} {job.version}",
    }
    path = folder.with_name(f"{folder.name}.log.json")
    write_atomic(path, (json.dumps(log, indent=1) + "\n").encode())


@contextmanager
def _timed(what: str, seconds: dict[str, float], say: Say) -> Iterator[None]:
    say(f"  {what} ...")
    began = time.perf_counter()
    yield
    seconds[what] = time.perf_counter() - began
    say(f"  {what}: {seconds[what]:.1f} s")


def main(argv: list[str] | None = None) -> int:
    """Build or report; returns the exit code."""
    options, report_only = parse(argv)
    return run(lambda: print_layer_reports(options) if report_only else build(options))
