"""``cpu``, ``cpu-int8``, ``onnx-cuda``: an ONNX step graph in ONNX Runtime, buffers bound in place.

``onnx-cuda`` is the graph of ``cpu`` on the CUDA provider, for cards that TensorRT has dropped,
such as the GTX 1080Ti. onnxruntime-gpu 1.22.1 is reported to work there and 1.23.2 to crash
(microsoft/onnxruntime#27588); we have not run it. Buffers stay on the host, and
ONNX Runtime copies them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engine.errors import BackendError, ModelError
from engine.geometry import Geometry, frame_to_network
from engine.runtime.base import StepInput
from engine.runtime.gpu.driver import need_driver

F32 = NDArray[np.float32]
WEIGHTS_HASH = "weights"  # in an int8 graph's metadata: the hash of the weights it was made from

# A step graph's inputs and how many axes they have, and its outputs.
_RANKS = {
    "frame": 3,
    "keys": 3,
    "values": 4,
    "slots": 2,
    "given": 3,
    "use_given": 1,
    "output_size": 1,
    "labels": 1,
}
_OUTPUTS = {"mask", "probabilities", "scores", "key", "value"}
_EXPORT = "make one with: python -m engine.export"

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {"cpu": [CPU], "cpu-int8": [CPU], "onnx-cuda": [CUDA, CPU]}


def check_cuda() -> None:
    """Raise BackendError unless there is a driver, and an ONNX Runtime that can use it."""
    need_driver()
    if CUDA not in ort.get_available_providers():
        raise BackendError(
            "the installed onnxruntime has no CUDA provider; run: pip uninstall -y onnxruntime && "
            "pip install onnxruntime-gpu (on a GTX 1080Ti: onnxruntime-gpu==1.22.1)"
        )


class OrtBackend:
    """See :class:`engine.runtime.base.Backend`. ``threads`` of 0 means one a core.

    name: ``cpu``, ``cpu-int8`` or ``onnx-cuda``; raises BackendError if the last cannot run here.
    profile: a folder for ONNX Runtime's profile, which `end_profile` completes.
    """

    on_gpu = False

    def __init__(
        self, graph: Path, threads: int = 0, name: str = "cpu", profile: Path | None = None
    ) -> None:
        self.name = name
        if name == "onnx-cuda":
            check_cuda()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile / "profile")
        # Idle threads yield their core to decoding and writing after 50 µs; by default they spin
        # for milliseconds. Older versions of ONNX Runtime do not know these keys and ignore them.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = ort.InferenceSession(graph, options, providers=PROVIDERS[name])
        except Exception as error:  # ONNX Runtime's own exception types are not public
            links = any(path.is_symlink() for path in graph.parent.glob("*.safetensors"))
            raise ModelError(
                f"'{graph}' or the weights beside it cannot be loaded ({first_line(error)}); "
                + ("copy the weights, which ONNX Runtime refuses as links" if links else "")
                + ("" if links else "reinstall the package")
            ) from error
        # ONNX Runtime falls back to the CPU with no more than a line in its log.
        if self.session.get_providers()[0] != PROVIDERS[name][0]:
            raise BackendError(
                "ONNX Runtime could not start its CUDA provider; check that CUDA and cuDNN are of "
                "the versions that onnxruntime-gpu names, or use --backend cpu"
            )
        shapes = {i.name: i.shape for i in self.session.get_inputs()}
        outputs = {output.name for output in self.session.get_outputs()}
        ranks = {name: len(shape) for name, shape in shapes.items()}
        if ranks != _RANKS or not outputs >= _OUTPUTS:
            raise ModelError(f"'{graph}' is no step graph of this version; {_EXPORT}")
        self.groups = shapes["slots"][0] == "G"  # int8 graphs made before have a row an object
        self.key_dim, self.value_dim = shapes["keys"][-1], shapes["values"][-1]

    def end_profile(self) -> Path:
        """Finish the profile and return its file, a list of events in JSON."""
        return Path(self.session.end_profiling())

    def weights_hash(self) -> str:
        """Return the hash of the weights that an int8 graph was made from; else empty."""
        return str(self.session.get_modelmeta().custom_metadata_map.get(WEIGHTS_HASH, ""))

    def open(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.output_size = np.array(geometry.source, np.int64)
        self.keys = np.zeros((0, geometry.tokens, self.key_dim), np.float32)
        self.values = np.zeros((0, 0, geometry.tokens, self.value_dim), np.float32)
        self.soft = np.zeros((1, *geometry.padded), np.float32)
        self.means = np.zeros((0, 2), np.float32)
        self.unused = np.zeros((0, *geometry.padded), np.float32)

    def arrange(self, columns: Sequence[int], slots: int) -> None:
        objects, kept = len(columns), min(slots, len(self.keys))
        keys = np.zeros((slots, *self.keys.shape[1:]), np.float32)
        keys[:kept] = self.keys[:kept]
        values = np.zeros((slots, objects, *self.values.shape[2:]), np.float32)
        for new, old in enumerate(columns):
            if old >= 0:
                values[:kept, new] = self.values[:kept, old]
        self.keys, self.values = keys, values
        if len(self.soft) != objects + 1:
            self.soft = np.zeros((objects + 1, *self.geometry.padded), np.float32)
            self.means = np.zeros((objects, 2), np.float32)
        self.unused = np.zeros((objects, *self.geometry.padded), np.float32)

    def expect(self, frame: Any) -> None:
        """Do nothing: nothing is uploaded."""

    def step(self, task: StepInput) -> NDArray[np.uint8]:
        mask = np.empty(self.geometry.source, np.uint8)
        inputs = {
            "frame": frame_to_network(task.frame, self.geometry),
            "keys": self.keys,
            "values": self.values,
            "slots": self.rows(task.slots),
            "given": self.unused if task.given is None else task.given,
            "use_given": task.use_given,
            "output_size": self.output_size,
            "labels": task.labels,
        }
        # The outputs land in the slot that this step does not read: no copy, no hazard.
        outputs = {
            "mask": mask,
            "probabilities": self.soft,
            "scores": self.means,
            "key": self.keys[task.write],
            "value": self.values[task.write],
        }
        self.run(inputs, outputs)
        return mask

    def rows(self, slots: NDArray[np.int32]) -> NDArray[np.int32]:
        """One row of slots [1, R] where all objects read the same, else a row an object [K, R]."""
        return slots[:1] if self.groups and (slots == slots[:1]).all() else slots

    def run(self, inputs: dict[str, NDArray[Any]], outputs: dict[str, NDArray[Any]]) -> None:
        """Run the graph on contiguous arrays, without copying them in or out."""
        binding = self.session.io_binding()
        for name, x in inputs.items():
            binding.bind_input(name, "cpu", 0, x.dtype, x.shape, x.ctypes.data)
        for name, x in outputs.items():
            binding.bind_output(name, "cpu", 0, x.dtype, x.shape, x.ctypes.data)
        self.session.run_with_iobinding(binding)

    def copy(self, source: int, target: int) -> None:
        self.keys[target] = self.keys[source]
        self.values[target] = self.values[source]

    def probabilities(self) -> F32:
        return self.soft

    def scores(self) -> F32:
        return self.means

    def export_memory(self) -> tuple[F32, F32]:
        return self.keys.copy(), self.values.copy()

    def import_memory(self, keys: F32, values: F32) -> None:
        self.arrange([-1] * values.shape[1], len(keys))
        self.keys[:], self.values[:] = keys, values

    def close(self) -> None:
        self.__dict__.pop("session", None)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
