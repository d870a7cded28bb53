"""What no machine can beat: ``python bench/roofline.py``. Arithmetic, never a measurement.

FLOPs and bytes of each stage come from the ONNX step graph (the memory read's from
`kernels.memory_read.roofline`, whose graph is the unfused reference), the peaks from NVIDIA's data
sheets, or, for this CPU, from a product of matrices and a copy timed here. For each network a band:

- upper end, every stage fused into one kernel that overlaps arithmetic and memory perfectly:
  FPS ≤ 1 / Σ_stages max(FLOPs / peak, bytes that must cross the stage's border / bandwidth)
- lower end, each operator by itself, through memory, at the same peaks:
  FPS ≤ 1 / Σ_operators max(FLOPs / peak, bytes in and out / bandwidth)

Both are bounds of their way of running. Launches, clocks below the boost and kernels below the
peak come on top of either.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python bench/roofline.py`

import numpy as np

from bench.stages import STAGES, stage_of_nodes
from engine.errors import EngineError, InputError
from engine.geometry import STRIDE
from engine.weights import MODELS, available, graph_path
from kernels.cards import GPUS
from kernels.memory_read.roofline import count

ELEMENT = {"fp16": 2, "fp32": 4}
SIZE = (480, 864)


class Unavailable(EngineError):
    """The bound cannot be computed here."""


@dataclass(frozen=True)
class Peak:
    """FLOP/s by precision and bytes/s; ``measured`` here or from a data sheet."""

    name: str
    flops: dict[str, float]
    bandwidth: float
    measured: bool = False


#: From data sheets; a card without tensor cores has no fast fp16.
CARDS = tuple(
    Peak(
        gpu.name,
        {"fp32": gpu.fp32_tflops * 1e12}
        | ({"fp16": gpu.fp16_tensor_tflops * 1e12} if gpu.fp16_tensor_tflops else {}),
        gpu.bandwidth_gb_s * 1e9,
    )
    for gpu in GPUS.values()
)


@dataclass(frozen=True)
class Cost:
    """Of a stage: FLOPs, numbers that cross its border, and (FLOPs, numbers) of each operator."""

    flops: float
    border: float
    operators: tuple[tuple[float, float], ...]


def load_graph(model: str) -> Any:
    """The step graph of ``model``, exported on the spot if the network has no weights yet.

    Raises Unavailable if a package for that is missing.
    """
    try:
        import onnx

        if model in available():
            return onnx.load(graph_path(model), load_external_data=False)
        from engine.export.step import step_graph
        from engine.model import create, fuse

        return step_graph(fuse(create(model)))
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"the bounds need the package '{error.name}'; run: pip install "
            "'mobilevos-engine[build]'"
        ) from error


@functools.cache
def costs(model: str, size: tuple[int, int] = SIZE, objects: int = 1) -> dict[str, Cost]:
    """The cost of every stage at the network's padded resolution ``size`` (H, W).

    Convolutions and products count as arithmetic, 2 FLOPs a multiply-add; the rest is memory.
    """
    import onnx

    height, width = size
    tokens = (height // STRIDE) * (width // STRIDE)
    proto = load_graph(model)
    graph = proto.graph
    stage_by_node = stage_of_nodes(proto)
    owner = {node.output[0]: stage_by_node[node.output[0]] for node in graph.node}
    _make_static(graph, size, tokens, objects)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    shape = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    shape |= {i.name: list(i.dims) for i in inferred.initializer}

    def numbers(name: str) -> float:
        # In a shape that is not known a 0 stands: nothing is counted, and it stays a bound.
        return float(np.prod(shape.get(name, [0])))

    crossing: dict[str, set[str]] = defaultdict(set)
    operators: dict[str, list[tuple[float, float]]] = defaultdict(list)
    flops: dict[str, float] = defaultdict(float)
    for node in inferred.node:
        stage = owner[node.output[0]]
        if stage in ("preprocess", "read_memory", "mask_head") or node.op_type == "Cast":
            continue
        work = _flops(node, shape)
        flops[stage] += work
        operators[stage].append((work, sum(map(numbers, (*node.input, *node.output)))))
        for name in node.input:
            source = owner.get(name)
            weight = source is None or (name in shape and name.startswith("model."))
            if source != stage or weight:
                crossing[stage].add(name)
                if source in flops and not weight:
                    crossing[source].add(name)
        crossing[stage].update(set(node.output) & {o.name for o in graph.output})
    result = {
        stage: Cost(flops[stage], sum(map(numbers, crossing[stage])), tuple(operators[stage]))
        for stage in operators
    }
    read = count("fp32", tokens, 64, 64, objects, 2)
    pixels = height * width
    result["read_memory"] = _alone(read.flops, read.fused_bytes / 4, read.eager_bytes / 4)
    # Frames and masks are bytes, a quarter of a number in fp32.
    result["preprocess"] = _alone(0, pixels * 3 * 1.25)
    result["mask_head"] = _alone(0, pixels * (objects + 1.25))
    return {stage: result[stage] for stage in STAGES}


def _alone(flops: float, border: float, apart: float | None = None) -> Cost:
    return Cost(flops, border, ((flops, border if apart is None else apart),))


def _make_static(graph: Any, size: tuple[int, int], tokens: int, objects: int) -> None:
    """Fix the inputs' shapes, and feed the graph behind its preprocessing."""
    from onnx import TensorProto, helper

    height, width = size
    fixed = {
        "frame": [height, width, 3],
        "keys": [2, tokens, 64],
        "values": [2, objects, tokens, 64],
        "slots": [objects, 2],
        "given": [objects, height, width],
        "use_given": [objects],
        "output_size": [2],
        "labels": [objects + 1],
    }
    for value in graph.input:
        for dim, n in zip(
            value.type.tensor_type.shape.dim, fixed.get(value.name, []), strict=False
        ):
            dim.Clear()
            dim.dim_value = n
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    kept = [
        node
        for node in graph.node
        if not any(name.startswith("preprocess/") or name == "image" for name in node.output)
    ]
    del graph.node[:]
    graph.node.extend(kept)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, height, width])
    graph.input.append(image)


def _flops(node: Any, shape: dict[str, list[int]]) -> float:
    if node.op_type not in ("Conv", "MatMul", "Gemm"):
        return 0.0
    out = float(np.prod(shape[node.output[0]]))
    second = shape[node.input[1]]
    # A Conv's weight is [Cout, Cin/groups, kh, kw]; a product sums over the second's rows.
    return 2 * out * float(np.prod(second[1:]) if node.op_type == "Conv" else second[-2])


def band(cost: dict[str, Cost], peak: Peak, precision: str) -> tuple[float, float]:
    """The FPS bounds of running operator by operator, and of perfectly fused stages."""
    flops, size = peak.flops[precision], ELEMENT[precision]

    def seconds(work: float, numbers: float) -> float:
        return max(work / flops, numbers * size / peak.bandwidth)

    apart = sum(seconds(*operator) for c in cost.values() for operator in c.operators)
    fused = sum(seconds(c.flops, c.border) for c in cost.values())
    return 1 / apart, 1 / fused


def fps_bound(model: str, card: str, precision: str) -> float:
    """The upper end of the band at 480×864 and one object. Raises Unavailable."""
    peak = next(c for c in CARDS if c.name == card)
    return band(costs(model), peak, precision)[1]


def measure_cpu(threads: int, seconds: float = 1.0) -> Peak:
    """This CPU's fp32 GEMM rate and copy rate (bytes read and written), the best of many tries.

    By PyTorch, or by NumPy, which takes its threads from the environment, where there is none.
    """
    multiply, copy, name = _torch_tools(threads) or _numpy_tools()
    n, length = 1536, 16_000_000
    gemm = 2 * n**3 / _best(multiply(n), seconds)
    rate = 2 * 4 * length / _best(copy(length), seconds)
    return Peak(f"this CPU ({name}, {threads} thread(s))", {"fp32": gemm}, rate, measured=True)


Maker = Callable[[int], Callable[[], Any]]


def _torch_tools(threads: int) -> tuple[Maker, Maker, str] | None:
    try:
        import torch
    except ModuleNotFoundError:
        return None
    torch.set_num_threads(threads)

    def multiply(n: int) -> Callable[[], Any]:
        a, b, out = torch.rand(n, n), torch.rand(n, n), torch.empty(n, n)
        return lambda: torch.mm(a, b, out=out)

    def copy(length: int) -> Callable[[], Any]:
        source, target = torch.rand(length), torch.empty(length)
        return lambda: target.copy_(source)

    return multiply, copy, "PyTorch's GEMM"


def _numpy_tools() -> tuple[Maker, Maker, str]:
    generator = np.random.default_rng(0)

    def multiply(n: int) -> Callable[[], Any]:
        a, b = (generator.random((n, n), np.float32) for _ in range(2))
        out = np.empty_like(a)
        return lambda: np.matmul(a, b, out=out)

    def copy(length: int) -> Callable[[], Any]:
        source = generator.random(length, np.float32)
        target = np.empty_like(source)
        return lambda: np.copyto(target, source)

    return multiply, copy, "NumPy's GEMM"


def _best(call: Callable[[], Any], seconds: float) -> float:
    """The shortest time of one call among as many as fit into ``seconds``, five at least."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def stage_lines(model: str, size: tuple[int, int], objects: int) -> Iterator[str]:
    """A table of FLOPs and bytes a stage."""
    cost = costs(model, size, objects)
    yield f"{model}, {size[0]}×{size[1]}, {objects} object(s), finite memory; computed"
    yield "| stage | GMAC | MB across its border, fp32 | MB operator by operator, fp32 |"
    yield "|---|---|---|---|"
    for stage, c in cost.items():
        apart = sum(numbers for _, numbers in c.operators)
        yield f"| {stage} | {c.flops / 2e9:.2f} | {c.border * 4e-6:.1f} | {apart * 4e-6:.1f} |"
    total = sum(c.flops for c in cost.values()) / 2e9
    border = sum(c.border for c in cost.values()) * 4e-6
    apart = sum(n for c in cost.values() for _, n in c.operators) * 4e-6
    yield f"| sum | {total:.2f} | {border:.1f} | {apart:.1f} |"


def band_lines(model: str, size: tuple[int, int], objects: int, peaks: list[Peak]) -> Iterator[str]:
    """A table of FPS bands, all of them bounds."""
    cost = costs(model, size, objects)
    yield "| machine | precision | FPS bound, operator by operator | FPS bound, fused stages |"
    yield "|---|---|---|---|"
    for peak in peaks:
        source = "measured peaks" if peak.measured else "data sheet"
        for precision in peak.flops:
            low, high = band(cost, peak, precision)
            yield f"| {peak.name}, {source} | {precision} | ≤ {low:.1f} | ≤ {high:.1f} |"


def fractions(results: Any, peak: Peak) -> Iterator[str]:
    """What part of the measured GEMM peak the measured rows reach."""
    for row in results.measured("short"):
        if row["memory"] != "finite" or row["model"] not in MODELS:
            continue
        size = tuple(n + -n % STRIDE for n in (row["height"], row["width"]))
        cost = costs(row["model"], size, row["objects"])
        rate = row["fps"] * sum(c.flops for c in cost.values())
        yield (
            f"{row['model']}, {row['backend']}, {row['width']}×{row['height']}, {row['objects']} "
            f"object(s): {row['fps']:.2f} FPS, {rate / 1e9:.1f} GFLOP/s, "
            f"{rate / peak.flops['fp32']:.0%} of the GEMM rate"
        )


def main(argv: list[str] | None = None) -> int:
    """Print the bounds."""
    from bench.common import RESULTS, cores, words
    from bench.report import read

    p = argparse.ArgumentParser(prog="python bench/roofline.py", description=__doc__)
    p.add_argument("--models", type=words, default=MODELS)
    p.add_argument("--size", default="480x864", help="of the network's input; default: %(default)s")
    p.add_argument("--objects", type=int, default=1)
    p.add_argument("--threads", type=int, default=cores())
    p.add_argument(
        "--results",
        type=Path,
        default=Path("build/bench") / RESULTS,
        help="of a run on this machine, for the part of the peak that it reaches",
    )
    options = p.parse_args(argv)
    try:
        height, width = (int(n) for n in options.size.split("x"))
        if height % STRIDE or width % STRIDE or min(height, width, options.objects) < 1:
            raise ValueError
    except ValueError:
        print("error: --size must be HxW, multiples of 16; --objects from 1 on", file=sys.stderr)
        return 2
    try:
        unknown = sorted(set(options.models) - set(MODELS))
        if unknown:
            raise InputError(f"unknown model '{unknown[0]}'; choose among: {', '.join(MODELS)}")
        print("Bounds by arithmetic, but for this CPU's two peaks, which are measured.\n")
        cpu = measure_cpu(options.threads)
        print(
            f"{cpu.name}: {cpu.flops['fp32'] / 1e9:.1f} GFLOP/s, copies "
            f"{cpu.bandwidth / 1e9:.1f} GB/s (measured here)\n"
        )
        for model in options.models:
            print(*stage_lines(model, (height, width), options.objects), "", sep="\n")
            lines = band_lines(model, (height, width), options.objects, [*CARDS, cpu])
            print(*lines, "", sep="\n")
        if options.results.is_file():
            print(*fractions(read(options.results), cpu), sep="\n")
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
