"""PyTorch to ONNX: ``python -m engine.export``."""
