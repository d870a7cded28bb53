"""A network's two files: its weights, and the step graph that shares them.

The graph holds no weights: its initialisers are external data that point into the safetensors file
beside it, so that PyTorch and ONNX Runtime read the same bytes.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from engine.errors import ModelError
from engine.export.step import WEIGHTS, step_graph
from engine.model import MobileVOS, create, fuse
from engine.weights import graph_path, weights_path, write_sums


def externalise(graph: onnx.ModelProto, weights: Path) -> None:
    """Replace each initialiser that is a tensor of ``weights`` by its fp16 bytes there and a Cast.

    ONNX Runtime folds the casts when it loads the graph.
    """
    raw = weights.read_bytes()
    head = int.from_bytes(raw[:8], "little")
    index = json.loads(raw[8 : 8 + head])
    casts = []
    for tensor in graph.graph.initializer:
        name = tensor.name.removeprefix(WEIGHTS)
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
    write_sums(folder)


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
