"""The stages as typed ONNX graphs of fixed shapes, as TensorRT compiles them around the kernels.

Two graphs, with the memory read, a kernel, between them. ``fp16`` graphs compute in fp16 but for
what would overflow or lose too much: aggregation, scores and means over the image are fp32.
"""

from __future__ import annotations

import copy

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from engine.export.exporter import export_onnx
from engine.export.passes import infer, means_in_fp32
from engine.model import Features, MobileVOS, aggregate, scores, upsample_logits

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


class EncodeQuery(nn.Module):
    """``encode_query``, its features one by one; a bundle's engine 1."""

    def __init__(self, model: MobileVOS) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Image [1, 3, H, W] → key [N, Ck], f16, f8, f4 and compressed (`Features`)."""
        key, features = self.model.encode_query(image)
        return key[0], *features


class DecodeAndEncodeValue(nn.Module):
    """Engine 2: ``decode``, aggregation, ``encode_value``."""

    def __init__(self, model: MobileVOS) -> None:
        super().__init__()
        self.decode, self.encode_value = model.decode, model.encode_value

    def forward(
        self,
        image: Tensor,
        readout: Tensor,
        f16: Tensor,
        f8: Tensor,
        f4: Tensor,
        compressed: Tensor,
        given: Tensor,
        use_given: Tensor,
        active: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Readout [K, N, Cv] → probabilities [K+1, H, W], value [K, N, Cv], scores [K, 2].

        given fp32 [K, H, W] replaces the prediction where use_given bool [K] is set; where active
        bool [K] is not, the object is absent: its column of the bucket is not in use.
        """
        logits = upsample_logits(self.decode(readout, Features(f16, f8, f4, compressed)))
        masks = torch.where(use_given[:, None, None], given, torch.sigmoid(logits))
        probabilities = aggregate(masks * active[:, None, None].float())
        value = self.encode_value(image, probabilities[1:], f16)
        return probabilities, value, scores(probabilities)


def stage_graphs(
    model: MobileVOS,
    size: tuple[int, int],
    objects: int,
    precision: str,
    dynamic: bool = False,
) -> dict[str, onnx.ModelProto]:
    """Export the graphs of a bundle by name: ``encode_query`` and ``decode``.

    Parameters
    ----------
    model: with batch norms folded (`engine.model.load`); left unchanged.
    size: (H, W), multiples of 16. objects: K. precision: ``fp16`` or ``fp32``.
    dynamic: leave H and W open (K stays fixed).
    """
    dtype = DTYPES[precision]
    model = copy.deepcopy(model).to(dtype)
    query_inputs = {"image": torch.zeros(1, 3, *size, dtype=dtype)}
    return {
        "encode_query": _export("encode_query", EncodeQuery(model), query_inputs, dynamic),
        "decode": _export(
            "decode",
            DecodeAndEncodeValue(model),
            _decode_inputs(model, size, objects, dtype),
            dynamic,
        ),
    }


OUTPUTS = {
    "encode_query": ("key", *Features._fields),
    "decode": ("probabilities", "value", "scores"),
}
#: Which axes of which tensors are how many times H/16 (h) or W/16 (w), or N (n).
_OPEN = {
    "image": {2: ("h", 16), 3: ("w", 16)},
    "given": {1: ("h", 16), 2: ("w", 16)},
    "f16": {2: ("h", 1), 3: ("w", 1)},
    "f8": {2: ("h", 2), 3: ("w", 2)},
    "f4": {2: ("h", 4), 3: ("w", 4)},
    "compressed": {2: ("h", 1), 3: ("w", 1)},
    "readout": {1: ("n", 1)},
    "key": {0: ("n", 1)},
    "value": {1: ("n", 1)},
    "probabilities": {1: ("h", 16), 2: ("w", 16)},
}


def symbols(name: str) -> dict[int, str]:
    """The open axes of a tensor as a manifest writes them: ``16h``, ``w``, ``n``."""
    return {axis: f"{k if k > 1 else ''}{d}" for axis, (d, k) in _OPEN.get(name, {}).items()}


def _decode_inputs(
    model: MobileVOS, size: tuple[int, int], objects: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    config, (height, width) = model.config, size
    h, w = height // 16, width // 16
    c16, c8, c4 = config.backbone.channels
    typed = {
        "image": (1, 3, height, width),
        "readout": (objects, h * w, config.value_dim),
        "f16": (1, c16, h, w),
        "f8": (1, c8, 2 * h, 2 * w),
        "f4": (1, c4, 4 * h, 4 * w),
        "compressed": (1, config.value_dim, h, w),
    }
    return {name: torch.zeros(shape, dtype=dtype) for name, shape in typed.items()} | {
        "given": torch.zeros(objects, *size),
        "use_given": torch.zeros(objects, dtype=torch.bool),
        "active": torch.zeros(objects, dtype=torch.bool),
    }


def _export(
    name: str, module: nn.Module, inputs: dict[str, Tensor], dynamic: bool
) -> onnx.ModelProto:
    """Export one graph, checked, with the shapes of all its values inferred."""
    shapes = None
    if dynamic:
        dims = {d: Dim(d, min=2) for d in "hwn"}
        shapes = tuple(
            {axis: dims[d] * k for axis, (d, k) in _OPEN.get(i, {}).items()} for i in inputs
        )
    graph = export_onnx(module, inputs, OUTPUTS[name], shapes)
    means_in_fp32(graph)
    return infer(graph)
