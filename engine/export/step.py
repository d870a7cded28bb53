"""Weights file and ONNX step graph of a trained network: ``python -m engine.export``.

The step graph is one frame of the loop, all four stages in one, dynamic in every size. It holds no
weights: its initialisers are external data that point into the safetensors file beside it, so that
PyTorch and ONNX Runtime read the same bytes.
"""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, parser
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim

from engine.errors import ModelError, run
from engine.export.exporter import IR_VERSION, OPSET, PRODUCER, export_onnx
from engine.model import CONFIGS, MobileVOS, aggregate, create, fuse, scores, upsample_logits
from engine.weights import DEFAULT_MODEL, graph_path, weights_path

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
<int64[1] zero = {0}, int64[2] origin = {0,0}, int64[2] axes = {1,2}>
{
  size = Shape<start=0, end=2>(frame)
  cropped = Slice(probabilities, origin, size, axes)
  batch = Unsqueeze(cropped, zero)
  channels = Shape<start=0, end=2>(batch)
  sizes = Concat<axis=0>(channels, output_size)
  resized = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(batch, , , sizes)
  best = ArgMax<axis=1, keepdims=0>(resized)
  index = Squeeze(best, zero)
  mask = Gather(labels, index)
}
"""


class Step(nn.Module):
    """The four stages in a row, on a normalised and padded image."""

    def __init__(self, model: MobileVOS) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        image: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        given: Tensor,
        use_given: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the logits, probabilities, key, value and scores of :func:`step_graph`."""
        model = self.model
        key, features = model.encode_query(image)
        readout = model.read_memory(key[0], keys, values, slots)
        logits = model.decode(readout, features)
        predicted = torch.sigmoid(upsample_logits(logits))
        probabilities = aggregate(torch.where(use_given[:, None, None], given, predicted))
        value = model.encode_value(image, probabilities[1:], features.f16)
        return logits, probabilities, key[0], value, scores(probabilities)


def step_graph(model: MobileVOS) -> onnx.ModelProto:
    """Export the network and put pre- and postprocessing around it; weights inside, fp32.

    Inputs: frame uint8 [h, w, 3] at network resolution, keys [S, N, Ck], values [S, K, N, Cv],
    slots int32 [K, R], given [K, H, W] in 0…1, use_given bool [K], output_size int64 [2], labels
    uint8 [K+1]. Outputs: mask uint8 [output_size], probabilities [K+1, H, W], key [N, Ck], value
    [K, N, Cv], logits [K, H/4, W/4], scores [K, 2] (see :func:`engine.model.scores`). Floats are
    fp32; H, W are h, w padded to multiples of 16.
    """
    h, w, k, s, n, r = (Dim(name, min=1) for name in ("h16", "w16", "K", "S", "N", "R"))
    # Dimensions of 0 and 1 would be taken for constants: the example has none.
    example = {
        "image": torch.zeros(1, 3, 64, 96),
        "keys": torch.zeros(3, 24, model.config.key_dim),
        "values": torch.zeros(3, 2, 24, model.config.value_dim),
        "slots": torch.zeros(2, 2, dtype=torch.int32),
        "given": torch.zeros(2, 64, 96),
        "use_given": torch.zeros(2, dtype=torch.bool),
    }
    shapes = {
        "image": {2: 16 * h, 3: 16 * w},
        "keys": {0: s, 1: n},
        "values": {0: s, 1: k, 2: n},
        "slots": {0: k, 1: r},
        "given": {0: k, 1: 16 * h, 2: 16 * w},
        "use_given": {0: k},
    }
    outputs = ("logits", "probabilities", "key", "value", "scores")
    core = export_onnx(Step(model), example, outputs, tuple(shapes.values()))
    before, after = parser.parse_model(PREPROCESS), parser.parse_model(MASK_HEAD)
    onnx.compose.add_prefix(
        before, "preprocess/", rename_inputs=False, rename_outputs=False, inplace=True
    )
    onnx.compose.add_prefix(
        after, "mask_head/", rename_inputs=False, rename_outputs=False, inplace=True
    )
    return compose(before, core, after)


def compose(
    before: onnx.ModelProto, core: onnx.ModelProto, after: onnx.ModelProto
) -> onnx.ModelProto:
    """Join three graphs by the names of their values."""
    graph = onnx.GraphProto(name="mobilevos_step")
    for model in (before, core, after):
        graph.node.extend(model.graph.node)
        graph.initializer.extend(model.graph.initializer)
    inputs = {i.name: i for m in (before, core, after) for i in reversed(m.graph.input)}
    outputs = {o.name: o for m in (before, core, after) for o in m.graph.output}
    graph.input.extend(v for name, v in inputs.items() if name not in outputs)
    graph.output.extend(v for name, v in outputs.items() if name != "image")
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name=PRODUCER,
    )


def externalise(graph: onnx.ModelProto, weights: Path) -> None:
    """Replace each initialiser that is a tensor of ``weights`` by its fp16 bytes there and a Cast.

    ONNX Runtime folds the casts when it loads the graph.
    """
    raw = weights.read_bytes()
    head = int.from_bytes(raw[:8], "little")
    index = json.loads(raw[8 : 8 + head])
    casts = []
    for tensor in graph.graph.initializer:
        name = tensor.name.removeprefix("model.")
        if name not in index:
            continue
        begin, end = index[name]["data_offsets"]
        stored = np.frombuffer(raw, np.float16, offset=8 + head + begin, count=(end - begin) // 2)
        if not np.array_equal(
            onnx.numpy_helper.to_array(tensor).ravel(), stored.astype(np.float32)
        ):
            raise ModelError(f"the exporter changed the weight '{name}'; it cannot be shared")
        casts.append(
            helper.make_node("Cast", [f"{name}.fp16"], [tensor.name], to=TensorProto.FLOAT)
        )
        tensor.ClearField("raw_data")
        tensor.name, tensor.data_type = f"{name}.fp16", TensorProto.FLOAT16
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", weights.name),
            ("offset", str(8 + head + begin)),
            ("length", str(end - begin)),
        ):
            tensor.external_data.add(key=key, value=value)
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def export(model: MobileVOS, name: str, folder: Path) -> None:
    """Write ``NAME.safetensors`` (fp16, batch norms folded) and ``NAME.onnx`` into ``folder``."""
    fuse(model)
    folder.mkdir(parents=True, exist_ok=True)
    weights = weights_path(name, folder)
    state = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    if not all(torch.isfinite(v).all() for v in state.values()):
        raise ModelError(f"a weight of '{name}' does not fit into fp16; it is not exported")
    save_file(state, weights)
    model.load_state_dict({k: v.float() for k, v in state.items()})
    graph = step_graph(model)
    externalise(graph, weights)
    onnx.save(graph, graph_path(name, folder))
    onnx.checker.check_model(str(graph_path(name, folder)), full_check=True)


def load_average(name: str, checkpoint: Path) -> MobileVOS:
    """Make the network ``name`` with the averaged weights of a training checkpoint.

    Batch norms may be folded in it or not. Raises ModelError if there are none in it.
    """
    model = create(name)
    try:
        state = torch.load(checkpoint, weights_only=True)["ema"]
        if not any(key.endswith("running_mean") for key in state):
            fuse(model)
        model.load_state_dict(state)
    except (OSError, RuntimeError, LookupError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"'{checkpoint}' is not a checkpoint of '{name}', or is missing or damaged "
            f"({(str(error).splitlines() or [''])[0]}); give the checkpoint.pt of its training"
        ) from error
    return model


def main(argv: list[str] | None = None) -> int:
    """Export the EMA weights of a training checkpoint."""
    p = argparse.ArgumentParser(prog="python -m engine.export", description=__doc__)
    p.add_argument("checkpoint", type=Path, help="checkpoint.pt of python -m engine.train")
    p.add_argument("--model", default=DEFAULT_MODEL, choices=CONFIGS)
    p.add_argument("--out", type=Path, default=Path("build/weights"))
    args = p.parse_args(argv)

    def work() -> None:
        export(load_average(args.model, args.checkpoint), args.model, args.out)
        for path in (weights_path(args.model, args.out), graph_path(args.model, args.out)):
            print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")

    return run(work)
