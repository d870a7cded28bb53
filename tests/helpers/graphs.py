"""Graphs from ONNX's text form."""

from __future__ import annotations

from onnx import ModelProto, TensorProto, helper, parser


def graph(text: str, **weights: tuple[int, ...]) -> ModelProto:
    """A graph in ONNX's text form; weights: initialisers by name and shape, fp16 unless …_f32."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]>\nstage {text}')
    for name, shape in weights.items():
        dtype = TensorProto.FLOAT if name.endswith("_f32") else TensorProto.FLOAT16
        width = 4 if name.endswith("_f32") else 2
        size = width
        for dim in shape:
            size *= dim
        model.graph.initializer.append(
            helper.make_tensor(name, dtype, shape, bytes(size), raw=True)
        )
    return model
