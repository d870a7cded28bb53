"""The one call of PyTorch's ONNX exporter, without its noise and its traces."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn

OPSET = 18
IR_VERSION = 10
PRODUCER = "mobilevos-engine"


def export_onnx(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    dynamic_shapes: tuple[dict[int, Any], ...] | None = None,
) -> onnx.ModelProto:
    """Export ``module`` with the names of its inputs (in order, with examples) and outputs.

    dynamic_shapes: for each input, axis → `torch.export.Dim`; None fixes every axis.
    """
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic_shapes,
            verbose=False,
        )
    graph = program.model_proto  # type: ignore[union-attr]
    graph.ir_version = IR_VERSION
    graph.producer_name, graph.producer_version = PRODUCER, ""
    for node in graph.graph.node:
        node.ClearField("metadata_props")  # the exporter's stack traces, with local paths
        node.ClearField("doc_string")
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's own deprecations and its notes on packages that we do not use."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", ".*axis name.*will not be used", UserWarning)
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)
