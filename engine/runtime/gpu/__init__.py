"""The parts of the GPU backends: driver, TensorRT, arrays, memory pool, the step of one frame."""
