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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import __version__, bundle
from engine.build import trt
from engine.build.options import Options, parse
from engine.build.targets import TURING, choose_runtime, choose_targets, engine_groups
from engine.build.targets import load as load_tensorrt
from engine.errors import BackendError, MissingExtraError, ModelError, run
from engine.files import write_atomic
from engine.weights import available, find

if TYPE_CHECKING:
    import onnx

    from engine.data.clips import Clip
    from engine.model import MobileVOS

NEEDS = ("torch", "safetensors", "onnx", "onnxscript", "triton")
CACHES = Path("build/cache")
_MB = 1e6

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Job:
    """Options with all choices made."""

    options: Options
    runtime: str
    version: str
    targets: tuple[str, ...]
    clip: Clip


def build(options: Options, say: Say = print) -> list[Path]:
    """Build a bundle per model and bucket; returns their folders.

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

    job = _Job(options, runtime, version, targets, demo_clip(options.size, options.frames))
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


def _build_one(job: _Job, name: str, objects: int, say: Say) -> Path:
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
    files: dict[str, bytes] = {}
    stages: dict[str, bundle.Stage] = {}
    with _timed("engines", seconds, say):
        for stage, forms in graphs.items():
            stages[stage] = _engines(job, stage, forms, files, say)
    with _timed("kernels", seconds, say):
        dims = model.config.key_dim, model.config.value_dim
        kernels = cubins(options.precision, job.targets, objects, dims, files)
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
        stages=stages,
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
    job: _Job,
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


def _engines(
    job: _Job,
    stage: str,
    forms: dict[str, onnx.ModelProto],
    files: dict[str, bytes],
    say: Say,
) -> bundle.Stage:
    """Build a stage's engines into ``files``; one for all targets but Turing, which has its own."""
    options = job.options
    engines, sources = {}, {}
    for group in engine_groups(job.targets):
        form = group[0] if group[0] in forms else ""
        graph = forms[form].SerializeToString()
        source = f"{stage}.{form}.onnx" if form else f"{stage}.onnx"
        # TensorRT tunes for one GPU, whose name is not in the graph.
        cache = CACHES / f"timing-{job.version}-{group[0]}.bin"
        profile = _profile(forms[form], options) if options.dynamic else None
        built = trt.build_engine(
            job.runtime,
            graph,
            group,
            options.precision,
            profile,
            cache if job.runtime == "tensorrt" else None,
        )
        file = f"{stage}.{group[0]}{'+' if len(group) > 1 else ''}.engine"
        files[source], files[file] = graph, built.data
        engine = bundle.Engine(file, built.activation_bytes, built.weight_bytes)
        engines.update(dict.fromkeys(group, engine))
        sources.update(dict.fromkeys(group, source))
        say(
            f"  {file}: {len(built.data) / _MB:.1f} MB for {', '.join(group)}, activations "
            f"{built.activation_bytes / _MB:.1f} MB, {built.seconds:.1f} s"
        )
    proto = forms[""]
    return bundle.Stage(
        inputs=_signature(proto.graph.input),
        outputs=_signature(proto.graph.output),
        onnx=sources,
        engines=engines,
    )


def _signature(values: Any) -> dict[str, bundle.Tensor]:
    """Dtypes and shapes of a graph's inputs or outputs."""
    import onnx

    from engine.export.stages import symbols

    found = {}
    for v in values:
        dims, named = v.type.tensor_type.shape.dim, symbols(v.name)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
        found[v.name] = bundle.Tensor(
            dtype=str(dtype), shape=tuple(d.dim_value or named[i] for i, d in enumerate(dims))
        )
    return found


def _profile(graph: onnx.ModelProto, options: Options) -> trt.Profile:
    """The least, best and greatest shape of every input with open dimensions."""
    assert options.dynamic is not None
    low, high = options.dynamic
    return {
        name: (tensor.at((low, low)), tensor.at(options.size), tensor.at((high, high)))
        for name, tensor in _signature(graph.graph.input).items()
        if tensor.open
    }


def cubins(
    precision: str,
    targets: Sequence[str],
    objects: int,
    dims: tuple[int, int],
    files: dict[str, bytes],
) -> dict[str, dict[str, str]]:
    """Compile the kernels of a frame into ``files``; returns target → op → launch JSON.

    dims: (Ck, Cv). Raises BackendError for a target without kernels.
    """
    from kernels import aot, tiles

    wanted = {f"preprocess-{precision}", "mask_head-fp32"}
    (ck, cv), columns = dims, tiles.value_block(precision, objects, dims[1])
    wanted |= {
        f"memory_read-{precision}-ck{ck}-cv{cv}-v{columns}",
        f"memory_read_merge-{precision}-cv{cv}",
    }
    found: dict[str, dict[str, str]] = {}
    for target in targets:
        if target not in tiles.SHARED_LIMIT:
            raise BackendError(
                f"the Triton kernels are not made for {target}; they are for "
                f"{', '.join(tiles.SHARED_LIMIT)}. On this GPU use the backend onnx-cuda"
            )
        found[target] = {}
        for variant in aot.variants(target, *dims):
            if variant.name in wanted:
                built = aot.compile_variant(variant, target)
                stem = f"{variant.name}.{target}"
                files[f"{stem}.cubin"] = built.cubin
                text = json.dumps(aot.launch_metadata(built), indent=1) + "\n"
                files[f"{stem}.json"] = text.encode()
                found[target][variant.op] = f"{stem}.json"
    return found


def versions() -> dict[str, str]:
    """What the bundle was made with."""
    packages = ("onnx", "onnxruntime", "onnxscript", "torch", "triton")
    found = {p: importlib.metadata.version(p) for p in packages}
    return {"mobilevos-engine": __version__, "python": platform.python_version(), **found}


def _store_log(folder: Path, job: _Job, seconds: dict[str, float]) -> None:
    """Durations, beside the bundle: in it they would change its hash."""
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
