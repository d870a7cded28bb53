"""The step graph: one frame of the loop, all stages in one ONNX graph, dynamic in every size."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
import torch
from onnx import helper, parser
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from engine.export.exporter import IR_VERSION, OPSET, PRODUCER, export_onnx
from engine.export.stages import EncodeQuery
from engine.model import Features, MobileVOS, aggregate, scores, upsample_logits
from engine.model.decode import Decoder

OUTPUTS = ("mask", "probabilities", "key", "value", "logits", "scores")
WEIGHTS = "model."  # how the exporter's names of weights begin

PREPROCESS = """
<ir_version: 10, opset_import: ["" : 18]>
preprocess (uint8[h,w,3] frame) => (float[1,3,H,W] image)
<int64[1] zero = {0}, int64[1] grid = {16}, int64[6] origin = {0,0,0,0,0,0},
 float scale = {0.007843137718737125}, float one = {1.0}>
{
  pixels = Cast<to=1>(frame)
  planes = Transpose<perm=[2,0,1]>(pixels)
  batch = Unsqueeze(planes, zero)
  scaled = Mul(batch, scale)
  centred = Sub(scaled, one)
  size = Shape<start=0, end=2>(frame)
  negative = Neg(size)
  missing = Mod(negative, grid)
  pads = Concat<axis=0>(origin, missing)
  image = Pad<mode="edge">(centred, pads)
}
"""

MASK_HEAD = """
<ir_version: 10, opset_import: ["" : 18]>
mask_head (float[P,H,W] probabilities, uint8[h,w,3] frame, int64[2] output_size, uint8[P] labels)
  => (uint8[H0,W0] mask)
<int64[1] zero = {0}, int64[2] origin = {0,0}, int64[2] axes = {1,2}, int64[1] all = {-1}>
{
  size = Shape<start=0, end=2>(frame)
  cropped = Slice(probabilities, origin, size, axes)
  batch = Unsqueeze(cropped, zero)
  channels = Shape<start=0, end=2>(batch)
  sizes = Concat<axis=0>(channels, output_size)
  resized = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(batch, , , sizes)
  best = ArgMax<axis=1, keepdims=0>(resized)
  index = Squeeze(best, zero)
  flat = Reshape(index, all)
  ids = GatherElements(labels, flat)
  shape = Shape(index)
  mask = Reshape(ids, shape)
}
"""


# `kernels.memory_read` defines the op; this is the form that costs a CPU least. |m|² is one more
# channel of the keys, so that one product gives the scores, and a huge |m|² masks a slot of −1.
# Each of the G rows of slots serves K/G objects, whose values stand side by side: where all objects
# read the same slots, one row does, and the keys are matched once for all of them.
READ_MEMORY = """
<ir_version: 10, opset_import: ["" : 18]>
read_memory (
  float[N,{ck}] key, float[S,N,{ck}] keys, float[S,K,N,{cv}] values, int32[G,R] slots
) => (float[K,N,{cv}] readout)
<int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] rest = {{-1}}, int64[2] channels = {{2,3}},
 int64 from = {{0}}, int64 by = {{1}}, int32 free = {{0}}, float far = {{1e30}},
 float double = {{{double}}}, float[1] minus = {{{minus}}}>
{{
  used = GreaterOrEqual(slots, free)
  newest = ReduceMax(slots, rest)
  filled = Where(used, slots, newest)
  safe = Max(filled, free)
  slot = Cast<to=7>(safe)

  memory = Gather(keys, slot)
  squares = ReduceSumSquare(memory, rest)
  there = Unsqueeze(used, channels)
  distance = Where(there, squares, far)
  extended = Concat<axis=-1>(memory, distance)
  groups = Shape<end=1>(slots)
  width = Shape<start=3>(extended)
  flat = Concat<axis=0>(groups, rest, width)
  matched = Reshape(extended, flat)
  columns = Transpose<perm=[0,2,1]>(matched)
  scaled = Mul(key, double)
  positions = Shape<end=1>(key)
  sides = Concat<axis=0>(positions, one)
  side = Expand(minus, sides)
  query = Concat<axis=-1>(scaled, side)
  scores = MatMul(query, columns)
  weights = Softmax<axis=-1>(scores)

  tail = Shape<start=2>(values)
  objects = Shape<start=1, end=2>(values)
  each = Div(objects, groups)
  split = Concat<axis=0>(rest, each, tail)
  pool = Reshape(values, split)
  count = Squeeze(groups)
  group = Range(from, count, by)
  offset = Unsqueeze(group, one)
  begin = Mul(slot, count)
  place = Add(begin, offset)
  taken = Gather(pool, place)
  beside = Transpose<perm=[0,1,3,2,4]>(taken)
  depth = Shape<start=3>(values)
  across = Mul(each, depth)
  tall = Concat<axis=0>(groups, rest, across)
  content = Reshape(beside, tall)
  found = MatMul(weights, content)
  apart = Concat<axis=0>(groups, positions, each, depth)
  unfolded = Reshape(found, apart)
  ordered = Transpose<perm=[0,2,1,3]>(unfolded)
  any = GreaterOrEqual(newest, free)
  known = Unsqueeze(any, channels)
  nothing = CastLike(free, ordered)
  told = Where(known, ordered, nothing)
  whole = Concat<axis=0>(objects, tail)
  readout = Reshape(told, whole)
}}
"""


class Decode(nn.Module):
    """``decode``, aggregation and ``encode_value`` in a row."""

    def __init__(self, model: MobileVOS) -> None:
        super().__init__()
        self.model = model

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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the logits, probabilities, value and scores of :func:`step_graph`."""
        model = self.model
        logits = predict(model.decode, readout, Features(f16, f8, f4, compressed))
        predicted = torch.sigmoid(upsample_logits(logits))
        probabilities = aggregate(torch.where(use_given[:, None, None], given, predicted))
        value = model.encode_value(image, probabilities[1:], f16)
        return logits, probabilities, value, scores(probabilities)


def predict(decoder: Decoder, readout: Tensor, features: Features) -> Tensor:
    """The decoder's logits [K, H/4, W/4], its last convolution as a transposed one.

    Convolutions compute 16 output channels at a time, of which this one has a single one.
    """
    weight = decoder.predict.weight.flip(2, 3).transpose(0, 1)
    x = decoder.embed(readout, features)
    return F.conv_transpose2d(x, weight, decoder.predict.bias, padding=1)[:, 0]


def step_graph(model: MobileVOS) -> onnx.ModelProto:
    """Export the network and put pre- and postprocessing around it; weights inside, fp32.

    Inputs: frame uint8 [h, w, 3] at network resolution, keys [S, N, Ck], values [S, K, N, Cv],
    slots int32 [G, R], each row of which serves K/G objects, given [K, H, W] in 0…1, use_given bool
    [K], output_size int64 [2], labels uint8 [K+1]. Outputs: mask uint8 [output_size], probabilities
    [K+1, H, W], key [N, Ck], value [K, N, Cv], logits [K, H/4, W/4], scores [K, 2] (see
    :func:`engine.model.scores`). Floats are fp32; H, W are h, w padded to multiples of 16.
    """
    config = model.config
    c16, c8, c4 = config.backbone.channels
    h, w, k, n = (Dim(name, min=1) for name in ("h16", "w16", "K", "N"))
    # Dimensions of 0 and 1 would be taken for constants: the example has none.
    image, grid = torch.zeros(1, 3, 64, 96), {2: h, 3: w}
    query = export_onnx(
        EncodeQuery(model), {"image": image}, ("key", *Features._fields), ({2: 16 * h, 3: 16 * w},)
    )
    example = {
        "image": image,
        "readout": torch.zeros(2, 24, config.value_dim),
        "f16": torch.zeros(1, c16, 4, 6),
        "f8": torch.zeros(1, c8, 8, 12),
        "f4": torch.zeros(1, c4, 16, 24),
        "compressed": torch.zeros(1, config.value_dim, 4, 6),
        "given": torch.zeros(2, 64, 96),
        "use_given": torch.zeros(2, dtype=torch.bool),
    }
    shapes = {
        "image": {2: 16 * h, 3: 16 * w},
        "readout": {0: k, 1: n},
        "f16": grid,
        "f8": {2: 2 * h, 3: 2 * w},
        "f4": {2: 4 * h, 3: 4 * w},
        "compressed": grid,
        "given": {0: k, 1: 16 * h, 2: 16 * w},
        "use_given": {0: k},
    }
    outputs = ("logits", "probabilities", "value", "scores")
    decode = export_onnx(Decode(model), example, outputs, tuple(shapes.values()))
    scale = 1 / math.sqrt(config.key_dim)
    read = READ_MEMORY.format(
        ck=config.key_dim, cv=config.value_dim, double=2 * scale, minus=-scale
    )
    return compose(
        {
            "preprocess": parser.parse_model(PREPROCESS),
            "encode_query": query,
            "read_memory": parser.parse_model(read),
            "decode": decode,
            "mask_head": parser.parse_model(MASK_HEAD),
        }
    )


def compose(parts: Mapping[str, onnx.ModelProto]) -> onnx.ModelProto:
    """String graphs together by the names of their inputs and outputs.

    What is inside a part is named ``part/…``, but for the weights.
    """
    graph = onnx.GraphProto(name="mobilevos_step")
    for part, model in parts.items():
        inner = model.graph
        ends = {v.name for v in (*inner.input, *inner.output)}
        kept = ends | {t.name for t in inner.initializer if t.name.startswith(WEIGHTS)}
        for node in inner.node:
            for names in (node.input, node.output):
                names[:] = [n if not n or n in kept else f"{part}/{n}" for n in names]
            node.name = node.output[0]
        for tensor in inner.initializer:
            tensor.name = tensor.name if tensor.name in kept else f"{part}/{tensor.name}"
        graph.node.extend(inner.node)
        graph.initializer.extend(inner.initializer)
    inputs = {i.name: i for m in parts.values() for i in reversed(m.graph.input)}
    outputs = {o.name: o for m in parts.values() for o in m.graph.output}
    graph.input.extend(v for name, v in inputs.items() if name not in outputs)
    graph.output.extend(v for name, v in outputs.items() if name in OUTPUTS)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name=PRODUCER,
    )
