"""What lies in a bundle: TensorRT engines of the stages, and the kernels' cubins."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import bundle
from engine.build import trt
from engine.build.options import Job, Options
from engine.build.targets import engine_groups
from engine.errors import BackendError

if TYPE_CHECKING:
    import onnx

CACHES = Path("build/cache")
_MB = 1e6


def engines(
    job: Job, stage: str, forms: dict[str, onnx.ModelProto], say: Callable[[str], None]
) -> tuple[bundle.Stage, dict[str, bytes]]:
    """Build a stage's engines: one for all targets but Turing, which has its own.

    forms: the stage's graphs, ``""`` or a target → graph. Returns the stage, as the manifest tells
    it, and its files.
    """
    options = job.options
    built_for: dict[str, bundle.Engine] = {}
    sources: dict[str, str] = {}
    files: dict[str, bytes] = {}
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
        built_for.update(dict.fromkeys(group, engine))
        sources.update(dict.fromkeys(group, source))
        say(
            f"  {file}: {len(built.data) / _MB:.1f} MB for {', '.join(group)}, activations "
            f"{built.activation_bytes / _MB:.1f} MB, {built.seconds:.1f} s"
        )
    graph_of_all = forms[""].graph
    told = bundle.Stage(
        inputs=_signature(graph_of_all.input),
        outputs=_signature(graph_of_all.output),
        onnx=sources,
        engines=built_for,
    )
    return told, files


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
    precision: str, targets: Sequence[str], objects: int, dims: tuple[int, int]
) -> tuple[dict[str, dict[str, str]], dict[str, bytes]]:
    """Compile the kernels of a frame; returns target → op → its launch JSON's name, and the files.

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
    files: dict[str, bytes] = {}
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
    return found, files
