"""ONNX to bundles, what an NVIDIA GPU runs: ``python -m engine.build``."""
