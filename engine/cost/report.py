"""The layer report of a build: what each stage costs at least, and what TensorRT must reformat.

Arithmetic on graphs and data sheets; nothing in it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from engine.cost.graph import Cost, bound_ms, layered_bound_ms, node_costs, total
from engine.cost.reformats import REASONS, reformats
from kernels.cards import CARDS, Card
from kernels.memory_read import roofline

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
    stages: Mapping[str, onnx.ModelProto],
    precision: str,
    read: ReadShape,
    cards: Sequence[Card] = CARDS,
) -> str:
    """Return the layer report as Markdown; arguments and errors as for `analyse`."""
    return render(analyse(stages, precision, read, cards))


def analyse(
    stages: Mapping[str, onnx.ModelProto],
    precision: str,
    read: ReadShape,
    cards: Sequence[Card] = CARDS,
) -> dict[str, Any]:
    """Return the layer report as data.

    Parameters
    ----------
    stages: graphs of fixed shapes by stage, in the order in which they run.
    precision: ``fp16`` or ``fp32``, of the graphs and the memory read; picks the cards' peaks.
    read: shape of the memory read, which stands behind the first stage.
    cards: the machines for which bounds are stated.

    Returns ``stages`` (by name: ops, params, gflop, mb_fused, mb_unfused, intensity in FLOP/byte,
    and by card ``bound_ms`` and ``layered_bound_ms``), ``total`` (their sums, and ``bound_fps`` and
    ``layered_bound_fps``), ``reformats`` (a list for each graph: `engine.cost.reformats.Reformat`),
    ``reasons``, ``notes``, and the arguments. Raises InputError for graphs that cannot be counted,
    and for another precision.
    """
    rows = {}
    for name, model in stages.items():
        rows[name] = _stage_row(model, precision, cards)
        if len(rows) == 1:
            rows[READ] = _read_row(read, precision, cards)
    found = {name: [asdict(r) for r in reformats(model)] for name, model in stages.items()}
    kinds = {entry["kind"] for entries in found.values() for entry in entries}
    return {
        "precision": precision,
        "cards": [card.name for card in cards],
        "read": asdict(read),
        "stages": rows,
        "total": _sum(list(rows.values())),
        "reformats": found,
        "reasons": {kind: reason for kind, reason in REASONS.items() if kind in kinds},
        "notes": list(NOTES),
    }


def _stage_row(model: onnx.ModelProto, precision: str, cards: Sequence[Card]) -> dict[str, Any]:
    costs = node_costs(model)
    cost, unfused = total(costs), total(costs, fused=False)
    return _row(
        len(costs),
        cost,
        unfused.bytes,
        {card.name: bound_ms(cost, card, precision) for card in cards},
        {card.name: layered_bound_ms(costs, card, precision) for card in cards},
    )


def _read_row(read: ReadShape, precision: str, cards: Sequence[Card]) -> dict[str, Any]:
    """One node, fused, as the kernel's own roofline counts it; exponentials bind it, too."""
    work = roofline.count(
        precision, read.tokens, read.key_dim, read.value_dim, read.objects, read.reads
    )
    bounds = {}
    for card in cards:
        found = roofline.bounds(card, precision, work)
        del found["eager traffic"]
        bounds[card.name] = 1e3 * max(found.values())
    return _row(1, Cost(work.flops, 0, 0, work.fused_bytes), work.eager_bytes, bounds, bounds)


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
        result[key] = {name: sum(row[key][name] for row in rows) for name in rows[0][key]}
    for key in ("bound", "layered_bound"):
        times = result[f"{key}_ms"]
        result[f"{key}_fps"] = {name: 1e3 / ms if ms else None for name, ms in times.items()}
    return result


def render(data: Mapping[str, Any]) -> str:
    """Return what `analyse` found as Markdown."""
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
            ["stage", *data["cards"]],
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
    """Return a cell for each card: the bound of the sums / the one layer by layer."""
    both = (row[key], row[f"layered_{key}"])
    return [
        " / ".join("–" if b[card] is None else f"{b[card]:.{digits}f}" for b in both)
        for card in row[key]
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
