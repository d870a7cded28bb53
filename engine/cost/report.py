"""The layer report of a build: what each stage costs at least, and what TensorRT must reformat.

Arithmetic on graphs and data sheets; nothing in it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from engine.cost.graph import Cost, bound_ms, layered_bound_ms, node_costs, total
from engine.cost.reformats import REASONS, reformats
from kernels.cards import A40, GPU, GTX_1080_TI, H100, RTX_4090
from kernels.memory_read import roofline

CARDS = {A40: "A40", GTX_1080_TI: "1080Ti", RTX_4090: "RTX 4090", H100: "H100 SXM"}
READ = "read_memory"
NOTES = (
    "Every figure is arithmetic on the graphs and on NVIDIA's data sheets; nothing was measured.",
    "bound = max(FLOPs / peak, bytes / bandwidth) of the stage's sums; layer by layer: of every"
    " node by itself, summed. Launches cost nothing.",
    "Bytes: weights, and activations as products (Conv, MatMul, Gemm) and the graph's ends read and"
    " write them (fused), or as every node does (unfused). Bounds use the fused ones and assume"
    " that no tensor stays in the GPU's cache from one node to the next: where one does, a stage"
    " that is bound by memory can be faster.",
    "Without tensor cores (GTX 1080 Ti) fp16 tensors are computed at the rate of fp32.",
    "FPS: stages one after another, without preprocess, mask_head and transfers.",
)


@dataclass(frozen=True)
class ReadShape:
    """The memory read: tokens N, key_dim Ck, value_dim Cv, objects K, reads R (slots an object)."""

    tokens: int
    key_dim: int
    value_dim: int
    objects: int = 1
    reads: int = 2


def report(
    stages: Mapping[str, onnx.ModelProto], precision: str, read: ReadShape | None = None
) -> str:
    """The layer report in Markdown; arguments and errors as `analyse`."""
    return render(analyse(stages, precision, read))


def analyse(
    stages: Mapping[str, onnx.ModelProto], precision: str, read: ReadShape | None = None
) -> dict[str, Any]:
    """The layer report as data for JSON.

    Parameters
    ----------
    stages: graphs of fixed shapes by stage, in the order in which they run.
    precision: ``fp16`` or ``fp32``, of the graphs and the memory read; picks the cards' peaks.
    read: shape of the memory read between the stages; None where a graph holds it.

    Returns ``stages`` (by name: ops, params, gflop, mb_fused, mb_unfused, intensity in FLOP/byte,
    and by card ``bound_ms`` and ``layered_bound_ms``), ``total`` (their sums, and ``bound_fps`` and
    ``layered_bound_fps``), ``reformats`` (a list for each graph: `engine.cost.reformats.Reformat`),
    ``reasons``, ``notes``, and the arguments. Raises InputError for graphs that cannot be counted,
    and for another precision.
    """
    rows = {}
    for name, model in stages.items():
        rows[name] = _stage_row(model, precision)
        if read is not None and len(rows) == 1:
            rows[READ] = _read_row(read, precision)
    found = {name: [asdict(r) for r in reformats(model)] for name, model in stages.items()}
    kinds = {entry["kind"] for entries in found.values() for entry in entries}
    return {
        "precision": precision,
        "measured": False,
        "read": asdict(read) if read else None,
        "stages": rows,
        "total": _sum(list(rows.values())),
        "reformats": found,
        "reasons": {kind: reason for kind, reason in REASONS.items() if kind in kinds},
        "notes": list(NOTES),
    }


def _stage_row(model: onnx.ModelProto, precision: str) -> dict[str, Any]:
    costs = node_costs(model)
    cost, unfused = total(costs), total(costs, fused=False)
    return _row(
        len(costs),
        cost,
        unfused.bytes,
        {gpu.name: bound_ms(cost, gpu, precision) for gpu in CARDS},
        {gpu.name: layered_bound_ms(costs, gpu, precision) for gpu in CARDS},
    )


def _read_row(read: ReadShape, precision: str) -> dict[str, Any]:
    """As the kernel's own roofline counts it: one node, whose exponentials bind, too."""
    work = roofline.count(
        precision, read.tokens, read.key_dim, read.value_dim, read.objects, read.reads
    )
    bounds = {gpu.name: _read_bound_ms(work, gpu, precision) for gpu in CARDS}
    return _row(1, Cost(work.flops, 0, 0, work.fused_bytes), work.eager_bytes, bounds, bounds)


def _read_bound_ms(work: roofline.Work, gpu: GPU, precision: str) -> float:
    (card,) = (card for card in roofline.CARDS if card.name == CARDS[gpu])
    bounds = roofline.bounds(card, precision if precision in card.flops else "fp32", work)
    return 1e3 * max(bounds[key] for key in ("products", "exponentials", "fused traffic"))


def _row(
    ops: int, cost: Cost, unfused: int, bounds: dict[str, float], layered: dict[str, float]
) -> dict[str, Any]:
    return {
        "ops": ops,
        "params": cost.params,
        "gflop": cost.flops / 1e9,
        "mb_fused": cost.bytes / 1e6,
        "mb_unfused": unfused / 1e6,
        "intensity": cost.intensity,
        "bound_ms": bounds,
        "layered_bound_ms": layered,
    }


def _sum(rows: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("ops", "params", "gflop", "mb_fused", "mb_unfused")
    result: dict[str, Any] = {key: sum(row[key] for row in rows) for key in keys}
    moved = result["mb_fused"]
    result["intensity"] = 1e3 * result["gflop"] / moved if moved else 0.0
    for key in ("bound_ms", "layered_bound_ms"):
        result[key] = {gpu.name: sum(row[key][gpu.name] for row in rows) for gpu in CARDS}
    for key in ("bound", "layered_bound"):
        times = result[f"{key}_ms"]
        result[f"{key}_fps"] = {name: 1e3 / ms if ms else None for name, ms in times.items()}
    return result


def render(data: Mapping[str, Any]) -> str:
    """What `analyse` found, in Markdown."""
    rows = {**data["stages"], "sum": data["total"]}
    lines = [
        f"# Layer report, {data['precision']}: bounds, not measured",
        "",
        *_table(
            ["stage", "ops", "parameters", "GFLOP", "MB fused", "MB unfused", "FLOP/byte"],
            [
                [
                    name,
                    f"{row['ops']}",
                    f"{row['params']:,}",
                    f"{row['gflop']:.3f}",
                    f"{row['mb_fused']:.2f}",
                    f"{row['mb_unfused']:.2f}",
                    f"{row['intensity']:.0f}",
                ]
                for name, row in rows.items()
            ],
        ),
        "",
        "Bound in ms, of the sums / layer by layer (bound, not measured):",
        "",
        *_table(
            ["stage", *(gpu.name for gpu in CARDS)],
            [[name, *_pairs(row, "bound_ms", 3)] for name, row in rows.items()]
            + [["FPS at most (bound, not measured)", *_pairs(data["total"], "bound_fps", 0)]],
        ),
        "",
        *(f"- {note}" for note in data["notes"]),
        "",
        *_reformat_lines(data),
    ]
    return "\n".join(lines) + "\n"


def _pairs(row: Mapping[str, Any], key: str, digits: int) -> list[str]:
    """A card each: the figure of the sums / the one layer by layer."""
    both = (row[key], row[f"layered_{key}"])
    return [
        " / ".join("–" if b[gpu.name] is None else f"{b[gpu.name]:.{digits}f}" for b in both)
        for gpu in CARDS
    ]


def _reformat_lines(data: Mapping[str, Any]) -> list[str]:
    entries = [(stage, e) for stage, found in data["reformats"].items() for e in found]
    if not entries:
        return ["## Reformats", "", "None."]
    lines = ["## Reformats", "", "What TensorRT has to copy into another format, or to pad:", ""]
    for kind, reason in data["reasons"].items():
        sizes = [e["bytes"] for _, e in entries if e["kind"] == kind]
        lines.append(f"- {kind} ({len(sizes)}, {sum(sizes) / 1e6:.2f} MB): {reason}.")
    rows = [
        [
            stage,
            e["kind"],
            e["node"],
            f"{e['tensor']} {e['dtype']} {list(e['shape'])}",
            f"{e['bytes']:,}",
            e["change"],
        ]
        for stage, e in entries
    ]
    return [*lines, "", *_table(["stage", "kind", "node", "tensor", "bytes", "change"], rows)]


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]
