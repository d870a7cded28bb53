"""Check a bundle's graphs in ONNX Runtime against the network in PyTorch, in fp32, on one clip.

Three views of one clip. *stages*: each graph alone, on the reference's inputs. *forced*: the whole
frame, but the memory is the reference's, so that errors do not add up. *free*: the whole loop on
its own memory, as it will run; judged by the masks alone, since a loop amplifies rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from engine.build.runners import Arrays, Loop, OnnxStages, Reference, Runner, decode_inputs
from engine.data.clips import Clip
from engine.errors import ModelError
from engine.export.stages import OUTPUTS
from engine.model import MobileVOS

FP16_MAX = 65504.0
STAGEWISE = 3  # the frames on which each stage is looked at alone, the given one first
_SURE = (1e-3, 1 - 1e-3)  # probabilities outside have logits that mean nothing


@dataclass(frozen=True)
class Limits:
    """The most that may differ. error: of an output, its maximum over the reference's largest
    value; logits: absolute; the two IoU: the least, over all pixels of all frames and objects.
    """

    error: float
    logits: float
    forced_iou: float
    free_iou: float


#: Some three times what was measured with the trained mobilevos-mobilenetv2 at 480x864 in ONNX
#: Runtime: fp16 errors of 1.7e-2, logits within 0.2, both IoU from 0.9997 on. fp32: 8e-6 and 1e-4.
LIMITS = {
    "fp32": Limits(error=1e-4, logits=1e-3, forced_iou=0.9999, free_iou=0.999),
    "fp16": Limits(error=5e-2, logits=0.6, forced_iou=0.995, free_iou=0.99),
}


@dataclass(frozen=True)
class Difference:
    """How an output differs from the reference's. peak: the reference's largest magnitude."""

    max: float
    rmse: float
    peak: float
    not_finite: int
    dtype: str

    @property
    def error(self) -> float:
        """The largest difference over the largest magnitude."""
        return self.max / self.peak if self.peak else self.max


@dataclass
class Parity:
    """The figures of one comparison; the module's docstring explains the three views."""

    precision: str
    clip: str
    frames: int
    stages: dict[str, dict[str, Difference]] = field(default_factory=dict)
    logits: float = 0.0
    forced_iou: float = 1.0
    free_iou: float = 1.0
    peak: float = 0.0
    peak_at: str = ""

    def failures(self, limits: Limits | None = None) -> list[str]:
        """Say what is beyond the limits; empty if nothing is."""
        limits = limits or LIMITS[self.precision]
        found = []
        for stage, outputs in self.stages.items():
            for name, d in outputs.items():
                if d.not_finite:
                    found.append(f"{stage}.{name} has {d.not_finite} values that are not finite")
                elif not d.error <= limits.error:
                    found.append(f"{stage}.{name} differs by {d.error:.1e} > {limits.error:.0e}")
        if not self.logits <= limits.logits:
            found.append(f"logits differ by {self.logits:.1e} > {limits.logits:.0e}")
        for name in ("forced_iou", "free_iou"):
            value, least = getattr(self, name), getattr(limits, name)
            if not value >= least:
                found.append(f"{name.replace('_', ' ')} {value:.4f} < {least}")
        if self.precision == "fp16" and not self.peak <= FP16_MAX / 2:
            found.append(f"{self.peak_at} reaches {self.peak:.0f}, fp16 ends at {FP16_MAX:.0f}")
        return found

    def summary(self) -> dict[str, Any]:
        """The figures for the manifest, rounded to what means something."""
        return {
            "clip": self.clip,
            "frames": self.frames,
            "stages": {
                stage: {
                    name: {k: _short(v) for k, v in asdict(d).items()}
                    for name, d in outputs.items()
                }
                for stage, outputs in self.stages.items()
            },
            "logits_max": _short(self.logits),
            "forced_iou": round(self.forced_iou, 5),
            "free_iou": round(self.free_iou, 5),
            "largest_activation": _short(self.peak),
            "largest_activation_at": self.peak_at,
            "limits": asdict(LIMITS[self.precision]),
        }


def _short(value: Any) -> Any:
    """Round a number to three digits."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def compare(
    model: MobileVOS,
    graphs: Mapping[str, bytes],
    clip: Clip,
    objects: int,
    precision: str,
    stages: Runner | None = None,
) -> Parity:
    """Run the clip through the reference and through ``graphs``.

    objects: K; all but the last of several columns are in use. stages: what runs the graphs, if not
    ONNX Runtime.
    """
    runner = stages or OnnxStages(graphs)
    tokens = clip.images[0].shape[2] * clip.images[0].shape[3] // 256
    dims = tokens, model.config.key_dim, model.config.value_dim
    reference = Loop(Reference(model), objects, dims)
    forced, free = (Loop(runner, objects, dims) for _ in range(2))
    parity = Parity(precision, clip.name, len(clip.images))
    used = max(1, objects - 1)
    counts = np.zeros((2, 2))
    for i, image in enumerate(clip.images):
        masks = clip.masks(objects, used, given=i == 0)
        want = reference.frame(image, masks, i == 0)
        got = forced.frame(image, masks, i == 0)
        own = free.frame(image, masks, i == 0)
        if i < STAGEWISE:
            for stage, outputs in _alone(runner, image, want, got, masks).items():
                known = parity.stages.setdefault(stage, {})
                for name, difference in outputs.items():
                    known[name] = _worst(known.get(name), difference)
        if i == 1:
            parity.peak, parity.peak_at = _peaks(graphs, image, want, masks)
        if i > 0:
            parity.logits = max(parity.logits, _logits(want, got, used))
            counts += [_overlap(want, o, used) for o in (got, own)]
        reference.remember(want, i == 0)
        forced.force(reference)
        free.remember(own, i == 0)
    parity.forced_iou, parity.free_iou = (a / b if b else 1.0 for a, b in counts)
    return parity


def check(parity: Parity, what: str) -> None:
    """Raise ModelError with the figures unless the comparison is within its limits."""
    failures = parity.failures()
    if failures:
        raise ModelError(
            f"{what} in {parity.precision} does not agree with PyTorch: {'; '.join(failures)}. "
            "The weights may not suit this precision; build with --fp32, and report it"
        )


def difference(want: NDArray[Any], got: NDArray[Any]) -> Difference:
    """Compare two arrays of one shape in float64."""
    a, b = want.astype(np.float64), got.astype(np.float64)
    good = np.isfinite(b)
    gap = np.where(good, b - a, 0.0)
    return Difference(
        max=float(np.abs(gap).max()),
        rmse=float(np.sqrt(np.square(gap).mean())),
        peak=float(np.abs(a).max()),
        not_finite=int((~good).sum()),
        dtype=str(got.dtype),
    )


def _alone(
    runner: Runner, image: NDArray[Any], want: Arrays, got: Arrays, masks: Arrays
) -> dict[str, dict[str, Difference]]:
    """Run each stage alone, on the reference's inputs."""
    decoded = runner.run("decode", decode_inputs(image, want["readout"], want, masks))
    return {
        "encode_query": {n: difference(want[n], got[n]) for n in OUTPUTS["encode_query"]},
        "decode": {n: difference(want[n], decoded[n]) for n in OUTPUTS["decode"]},
    }


def _worst(a: Difference | None, b: Difference) -> Difference:
    if a is None:
        return b
    return Difference(
        max(a.max, b.max),
        max(a.rmse, b.rmse),
        max(a.peak, b.peak),
        a.not_finite + b.not_finite,
        b.dtype,
    )


def _logits(want: Arrays, got: Arrays, used: int) -> float:
    p, q = (x["probabilities"][1 : 1 + used].astype(np.float64) for x in (want, got))
    sure = (p > _SURE[0]) & (p < _SURE[1])
    q = np.clip(q, 1e-6, 1 - 1e-6)
    gap = np.abs(np.log(p / (1 - p)) - np.log(q / (1 - q)), where=sure, out=np.zeros_like(p))
    return float(gap.max())


def _overlap(want: Arrays, got: Arrays, used: int) -> tuple[int, int]:
    """Return intersection and union of the masks, summed over the objects."""
    a, b = (x["probabilities"].argmax(0) for x in (want, got))
    ids = range(1, 1 + used)
    return (
        sum(int(((a == k) & (b == k)).sum()) for k in ids),
        sum(int(((a == k) | (b == k)).sum()) for k in ids),
    )


def _peaks(
    graphs: Mapping[str, bytes], image: NDArray[Any], want: Arrays, masks: Arrays
) -> tuple[float, str]:
    """Return the largest magnitude of any fp16 tensor of the graphs, and its name."""
    largest = 0.0, ""
    for stage, graph in graphs.items():
        watched = watch(graph)
        inputs: Arrays = {"image": image}
        if stage == "decode":
            inputs = decode_inputs(image, want["readout"], want, masks)
        for name, value in OnnxStages({stage: watched}).run(stage, inputs).items():
            if name.endswith(".peak"):
                largest = max(largest, (float(value), f"{stage} {name.removesuffix('.peak')}"))
    return largest


def watch(graph: bytes) -> bytes:
    """Add an output ``NAME.peak`` to the graph for each fp16 tensor: its largest magnitude."""
    model = onnx.ModelProto.FromString(graph)
    fp16 = TensorProto.FLOAT16
    inner = [v.name for v in model.graph.value_info if v.type.tensor_type.elem_type == fp16]
    made = {o for n in model.graph.node for o in n.output}
    for name in sorted(made.intersection(inner)):
        model.graph.node.extend(
            [
                helper.make_node("Cast", [name], [f"{name}.peak.wide"], to=TensorProto.FLOAT),
                helper.make_node("Abs", [f"{name}.peak.wide"], [f"{name}.peak.abs"]),
                helper.make_node("ReduceMax", [f"{name}.peak.abs"], [f"{name}.peak"], keepdims=0),
            ]
        )
        model.graph.output.append(
            helper.make_tensor_value_info(f"{name}.peak", TensorProto.FLOAT, [])
        )
    watched: bytes = model.SerializeToString()
    return watched


def table(parity: Parity) -> list[str]:
    """Return the figures as lines of text."""
    lines = [f"    {'output':<28}{'dtype':<9}{'max':>9}{'RMSE':>9}{'max/peak':>10}"]
    for stage, outputs in parity.stages.items():
        for name, d in outputs.items():
            numbers = f"{d.max:>9.1e}{d.rmse:>9.1e}{d.error:>10.1e}"
            lines.append(f"    {stage + '.' + name:<28}{d.dtype:<9}{numbers}")
    lines.append(
        f"    clip '{parity.clip}', {parity.frames} frames: logits within {parity.logits:.1e}, "
        f"mask IoU {parity.forced_iou:.4f} with the reference's memory, "
        f"{parity.free_iou:.4f} on its own"
    )
    if parity.precision == "fp16" and parity.peak_at:
        lines.append(
            f"    largest fp16 value {parity.peak:.0f} of {FP16_MAX:.0f}, at {parity.peak_at}"
        )
    return lines
