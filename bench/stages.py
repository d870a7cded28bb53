"""Where a step's time goes: the six stages of ARCHITECTURE.md, in a pass of its own.

Profiling costs time itself, so these figures are never mixed with those of the timed passes.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.cases import COMPILED, Case
from bench.subjects import network_of
from engine.runtime.ort import OrtBackend
from engine.segmenter import Segmenter
from engine.weights import graph_path

STAGES = ("preprocess", "encode_query", "read_memory", "decode", "encode_value", "mask_head")
OTHER = "other"  # what is left of the step: the host, and in PyTorch also aggregation


def measure(
    case: Case, segmenter: Any, threads: int, drive: Callable[[Any, int], list[float]], frames: int
) -> tuple[dict[str, float], str]:
    """Mean milliseconds of each stage over ``frames`` frames, and how they were measured.

    ``drive(segmenter, n)`` steps n frames on and returns their times. Backends that cannot be
    looked into give an empty dict and the reason.
    """
    if case.backend == "reference" or case.backend in COMPILED:
        model = network_of(segmenter)
        with wrapped(segmenter._backend, model) as spent:
            total = drive(segmenter, frames)
        how = "timers around PyTorch's stages"
    elif case.backend in ("cpu", "onnx-cuda"):
        spent, total = profile(case, segmenter, threads, drive, frames)
        how = "ONNX Runtime's profile"
    else:
        return {}, f"the backend {case.backend} cannot be looked into"
    result = {stage: spent[stage] / frames for stage in STAGES if stage in spent}
    result[OTHER] = max(0.0, sum(total) / frames - sum(result.values()))
    return {k: round(v, 3) for k, v in result.items()}, how


@contextlib.contextmanager
def wrapped(backend: Any, model: Any) -> Iterator[dict[str, float]]:
    """Timers around the stages of the reference backend; yields milliseconds, summed up."""
    import torch

    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            synchronise(torch)
            began = time.perf_counter()
            result = call(*args)
            synchronise(torch)
            spent[name] += (time.perf_counter() - began) * 1e3
            return result

        return run

    # Instance attributes hide methods and registered modules; deleting them uncovers these again.
    names = ("encode_query", "read_memory", "decode", "encode_value")
    calls = {name: getattr(model, name) for name in names}
    backend.preprocess = timed("preprocess", backend.preprocess)
    for name, call in calls.items():
        model.__dict__[name] = timed(name, call)
    try:
        yield spent
    finally:
        del backend.preprocess
        for name in names:
            del model.__dict__[name]


def synchronise(torch: Any) -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def profile(
    case: Case, segmenter: Segmenter, threads: int, drive: Callable[[Any, int], list[float]], n: int
) -> tuple[dict[str, float], list[float]]:
    """Drive a copy of ``segmenter``, in the same state, ``n`` frames on with its graph profiled.

    Returns milliseconds a stage, summed up, and the frames' times.
    """
    graph = graph_path(case.model, Path(case.weights))
    with tempfile.TemporaryDirectory() as folder:
        backend = OrtBackend(graph, threads, case.backend, profile=Path(folder))
        other = Segmenter(backend, case.model, segmenter.model_hash, case.size, case.memory)
        other.load_state_dict(segmenter.state_dict())
        total = drive(other, n + 1)[1:]
        events = json.loads(backend.end_profile().read_text())
        other.close()
    return stage_times(events, stage_of_nodes(graph)), total


def stage_of_nodes(graph: Any) -> dict[str, str]:
    """The stage of every node of a step graph (a file's path or a model).

    A node belongs to the latest stage among its inputs' and its weights': a weight's name begins
    with its stage; the memory's inputs belong to ``read_memory``, given masks to ``decode``.
    """
    import onnx

    loaded = isinstance(graph, onnx.ModelProto)
    nodes_of = (graph if loaded else onnx.load(graph, load_external_data=False)).graph
    rank = {stage: i for i, stage in enumerate(STAGES)}
    of_input = {"keys": "read_memory", "values": "read_memory", "slots": "read_memory"}
    of_input |= {"given": "decode", "use_given": "decode"}
    value = {name: rank[stage] for name, stage in of_input.items()}
    nodes: dict[str, str] = {}
    for index, node in enumerate(nodes_of.node):
        latest = rank["preprocess"]
        for name in node.input:
            owner = name.removeprefix("model.").split(".")[0]
            latest = max(latest, rank.get(owner, 0), value.get(name, 0))
        if node.output[0].startswith("mask_head/") or node.output[0] == "mask":
            latest = rank["mask_head"]
        if node.op_type == "Shape":
            latest = rank["preprocess"]  # sizes are known at once, whatever they are the sizes of
        for name in node.output:
            value[name] = latest
        # ONNX Runtime calls a nameless node by its place, and some fused ones by their output.
        for name in (node.name or f"{node.op_type}_{index}", node.output[0]):
            nodes[name] = STAGES[latest]
    return nodes


def stage_times(events: list[dict[str, Any]], nodes: dict[str, str]) -> dict[str, float]:
    """Milliseconds a stage from the events of a profile, its first run (allocations) left out.

    Nodes that the optimiser made (reorders of memory, fusions) and that have a name of their own
    count to the stage of the node before them.
    """
    spent: dict[str, float] = defaultdict(float)
    stage = STAGES[0]
    first = next((i for i, event in enumerate(events) if event.get("name") == "model_run"), -1)
    for event in events[first + 1 :]:
        name = event.get("name", "")
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        stage = nodes.get(name.removesuffix("_kernel_time").removesuffix("_nchwc"), stage)
        spent[stage] += event["dur"] / 1e3
    return spent
