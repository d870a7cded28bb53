"""The int8 graph of the backend ``cpu-int8``: ``python -m engine.export.quantize``.

Convolutions and what lies between them get 8-bit weights (a scale a channel) and 8-bit activations
(a scale a tensor), whose ranges are those seen on frames of a calibration set. The memory read and
the merging of objects stay in fp32. All 8 bits of the weights are used, which x86 sums rightly only
with VNNI (see `engine.runtime.vnni`): with 7, J&F on the development split fell by 0.02.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from engine.data.davis import Dataset, load_truth
from engine.errors import run
from engine.files import make_folder, write_atomic
from engine.intake import Mask
from engine.runtime.ort import WEIGHTS_HASH, OrtBackend
from engine.segmenter import Segmenter
from engine.weights import DEFAULT_MODEL, FOLDER, MODELS, find, int8_path, short_hash, write_sums

Inputs = dict[str, NDArray[Any]]

OPERATORS = ["Conv", "Add", "Concat", "Relu", "Clip", "Pad", "Mul"]
STEPS = 5  # the step of a sequence that is recorded: its memory is the network's own by then


class Recorder(OrtBackend):
    """The backend ``cpu``; ``last`` holds copies of the inputs of the most recent step."""

    last: Inputs

    def run(self, inputs: Inputs, outputs: Inputs) -> None:
        self.last = {name: np.array(x) for name, x in inputs.items()}
        super().run(inputs, outputs)


def record(model: str, folder: Path, root: Path, without: Sequence[str]) -> list[Inputs]:
    """Inputs of the step graph of ``model``, one step of every sequence of a DAVIS layout.

    Raises an EngineError where the data or the model's files are missing.
    """
    weights, graph = find(model, folder)
    dataset = Dataset.find(root)
    dataset.sequences(without)  # a misspelt name must not put its sequence into the calibration
    steps = []
    recorder = Recorder(graph)
    segmenter: Segmenter[Mask] = Segmenter(recorder, model, short_hash(weights))
    with segmenter:
        for name in dataset.sequences(None):
            if name in without:
                continue
            images, masks = dataset.frames(name)
            frames = (frame.image for frame in images.frames(0, STEPS))
            for _ in segmenter.segment(frames, load_truth(masks[0])):
                pass
            steps.append(recorder.last)
    return steps


class Steps(CalibrationDataReader):  # type: ignore[misc]
    """Recorded steps as ONNX Runtime's calibration asks for them."""

    def __init__(self, steps: Sequence[Inputs]) -> None:
        self._steps: Iterator[Inputs] = iter(steps)

    def get_next(self) -> Inputs | None:
        return next(self._steps, None)


def memory_read_nodes(model: onnx.ModelProto) -> list[str]:
    """Returns the names of the nodes of the memory read, which stays in fp32."""
    return [n.name for n in model.graph.node if n.name.startswith("read_memory/")]


def quantize(model: str, folder: Path, steps: Sequence[Inputs]) -> bytes:
    """The int8 graph of ``model``, calibrated on ``steps``, as a self-contained ONNX file."""
    weights, graph = find(model, folder)
    logging.getLogger().setLevel(logging.ERROR)  # of its advice to run what is done here
    with tempfile.TemporaryDirectory() as scratch:
        folded, quantized = Path(scratch) / "folded.onnx", Path(scratch) / "int8.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Folds the fp16 weights' casts; what higher levels make is not portable.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        quantize_static(
            folded,
            quantized,
            Steps(steps),
            op_types_to_quantize=OPERATORS,
            nodes_to_exclude=memory_read_nodes(onnx.load(folded)),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=False,
        )
        result = onnx.load(quantized)
    result.producer_name = "mobilevos-engine"
    for node in result.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    onnx.helper.set_model_props(result, {WEIGHTS_HASH: short_hash(weights)})
    onnx.checker.check_model(result)
    data: bytes = result.SerializeToString(deterministic=True)
    return data


def main(argv: list[str] | None = None) -> int:
    """Write NAME-int8.onnx beside the model's other files."""
    p = argparse.ArgumentParser(prog="python -m engine.export.quantize", description=__doc__)
    p.add_argument("--davis", type=Path, required=True, help="data to calibrate on: DAVIS layout")
    p.add_argument("--without", nargs="*", default=[], metavar="SEQUENCE", help="leave these out")
    p.add_argument("--model", default=DEFAULT_MODEL, choices=MODELS)
    p.add_argument("--weights", type=Path, default=FOLDER, help="folder of the model's files")
    p.add_argument("--out", type=Path, help="another folder to write to")
    args = p.parse_args(argv)
    path = int8_path(args.model, args.out or args.weights)

    def work() -> None:
        make_folder(path.parent)
        steps = record(args.model, args.weights, args.davis, args.without)
        write_atomic(path, quantize(args.model, args.weights, steps))
        write_sums(path.parent)
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB, sequences calibrated on: {len(steps)}")

    return run(work)


if __name__ == "__main__":
    raise SystemExit(main())
