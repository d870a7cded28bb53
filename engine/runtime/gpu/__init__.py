"""The parts of the GPU backend: driver, TensorRT, arrays, memory pool, the step of one frame."""
