"""Stand-ins in host memory for the GPU: exactly the driver and TensorRT calls that the engine uses.

`machine` keeps memory, streams, events and graphs, and runs what was put on streams late and in any
order that the recorded events allow; `cuda_driver` is ``cuda.bindings.driver`` in front of it,
`rtx` is ``tensorrt_rtx``, whose engines run in ONNX Runtime, and `code` is what kernels do.
"""
