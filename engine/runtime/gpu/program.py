"""A bundle on a device: its engines deserialised, its kernels loaded. Holds no frame's buffers."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.bundle import MANIFEST, Bundle, file_sha256, find_bundle, load_bundle
from engine.errors import BackendError, MissingExtraError, ModelError
from engine.geometry import Geometry
from engine.runtime.gpu.driver import Device, Scope, need_driver
from engine.runtime.gpu.tensorrt import MODULES, Context, RuntimeCache, TensorRT
from kernels import launch
from kernels.tiles import value_block

#: Tensors that lie in the block of controls, not in buffers of their own.
_ELSEWHERE = {"use_given", "active"}
ALIGNMENT = 256  # bytes: what TensorRT asks of a tensor's address


@dataclass(frozen=True)
class Tensor:
    """A stage's input or output at a video's size."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size without padding."""
        return math.prod(self.shape) * self.dtype.itemsize


class Program:
    """One bundle, loaded on a device. ``objects``: its bucket.

    Raises ModelError: built for other GPUs, another TensorRT, or damaged.
    """

    def __init__(self, device: Device, tensorrt: TensorRT, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.objects, self.precision = manifest.objects, manifest.precision
        self._scope = Scope(device)
        self._remedy = f"build it again here: {manifest.rebuild_command()}"
        self._stages = manifest.stages
        self._declared = {
            name: tensor
            for stage in manifest.stages.values()
            for name, tensor in (*stage.inputs.items(), *stage.outputs.items())
        }
        key, value = self._declared["key"], self._declared["value"]
        self.dtype: np.dtype[Any] = np.dtype(key.dtype)
        self.key_dim, self.value_dim = (t.at(manifest.size)[-1] for t in (key, value))
        self.cache = None
        if tensorrt.backend == "tensorrt-rtx":
            pin = bundle.sha256[:12]
            file = bundle.folder.with_name(f"{bundle.folder.name}.{device.arch}.{pin}.cache")
            self.cache = RuntimeCache(file)
        try:
            self._engines = {
                name: tensorrt.load(self._engine_file(bundle, name), self._remedy)
                for name in manifest.stages
            }
            self.kernels = self._load_kernels(device, bundle)
        except BaseException:
            self._scope.close()
            raise
        self.scratch = max(engine.scratch for engine in self._engines.values())

    def _engine_file(self, bundle: Bundle, stage: str) -> Path:
        engines, device = bundle.manifest.stages[stage].engines, self._scope.device
        if device.arch not in engines:
            raise ModelError(
                f"'{bundle.folder}' is built for {', '.join(engines)}, but {device.name} is "
                f"{device.arch}; {self._remedy}"
            )
        return bundle.path(engines[device.arch].file)

    def _load_kernels(self, device: Device, bundle: Bundle) -> dict[str, launch.Kernel]:
        precision, ck, cv = self.precision, self.key_dim, self.value_dim
        soft = "fp16" if self._declared["probabilities"].dtype == "float16" else "fp32"
        names = {"preprocess": f"preprocess-{precision}", "mask_head": f"mask_head-{soft}"}
        block = value_block(precision, self.objects, cv)
        names["memory_read"] = f"memory_read-{precision}-ck{ck}-cv{cv}-v{block}"
        names["memory_read_merge"] = f"memory_read_merge-{precision}-cv{cv}"
        kernels = {}
        for op, name in names.items():
            try:
                kernels[op] = launch.load(bundle.folder, name, device.capability)
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                raise ModelError(
                    f"the kernels in '{bundle.folder}' do not run on {device.name} ({error}); "
                    f"{self._remedy}"
                ) from None
            self._scope.keep(kernels[op].unload)
        return kernels

    def tensors(self, geometry: Geometry) -> dict[str, Tensor]:
        """Return all inputs and outputs of the stages, by name, at a video's size."""
        return {
            name: Tensor(np.dtype(t.dtype), t.at(geometry.padded))
            for name, t in self._declared.items()
        }

    def buffers(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors that need a buffer: those outside the slots and the controls.

        Engines write their key and value straight into a slot, unless it begins off TensorRT's
        alignment.
        """
        written = ("key", "value")
        direct = all(tensors[n].bytes % ALIGNMENT == 0 for n in written)
        elsewhere = _ELSEWHERE | (set(written) if direct else set())
        return {name: t for name, t in tensors.items() if name not in elsewhere}

    def context(
        self,
        stage: str,
        addresses: Mapping[str, int],
        scratch: int,
        tensors: Mapping[str, Tensor],
    ) -> Context:
        """Bind a stage's engine to ``addresses``, with its activations at ``scratch``."""
        opened = {
            name: tensors[name].shape for name, t in self._stages[stage].inputs.items() if t.open
        }
        return self._engines[stage].context(scratch, addresses, opened, self.cache)

    def close(self) -> None:
        """Write the runtime cache, unload the kernels, free the engines."""
        if self.cache is not None:
            self.cache.save()
        self._engines.clear()
        self._scope.close()


class Library:
    """The bundles of one model and backend on one device, each loaded when it is first needed.

    folder: where the bundles lie. weights_sha256: of the weights that they must be built from.
    expect_sha256: of the manifest of the one bundle that may be loaded. Takes over ``device``.
    """

    def __init__(
        self,
        device: Device,
        tensorrt: TensorRT,
        model: str,
        folder: Path,
        weights_sha256: str,
        expect_sha256: str | None = None,
    ) -> None:
        self.device, self.backend = device, tensorrt.backend
        self._tensorrt, self._model, self._folder = tensorrt, model, folder
        self._weights, self._expected = weights_sha256, expect_sha256
        self._programs: dict[Path, Program] = {}
        self._closed = False

    @classmethod
    def open(
        cls, backend: str, model: str, weights: Path, folder: Path, expect_sha256: str | None
    ) -> Library:
        """Open the bundles that were built from the file ``weights``, on the first GPU.

        Raises BackendError or MissingExtraError.
        """
        device = Device()
        try:
            tensorrt = TensorRT(backend, device)
        except BaseException:
            device.release()
            raise
        return cls(device, tensorrt, model, folder, file_sha256(weights), expect_sha256)

    def find(self, geometry: Geometry, objects: int, precision: str | None = None) -> Path:
        """Return the folder of the bundle with the smallest bucket for ``objects``.

        Raises ModelError, which names the command that builds one, if there is none.
        """
        return find_bundle(
            self._model, geometry.padded, objects, precision, self.backend, self._folder
        )

    def program(self, geometry: Geometry, objects: int, precision: str | None = None) -> Program:
        """Load the bundle that :meth:`find` finds; raise ModelError if it cannot run here."""
        path = self.find(geometry, objects, precision)
        if path not in self._programs:
            bundle = load_bundle(path, self._expected)
            if bundle.manifest.model_sha256 != self._weights:
                raise ModelError(
                    f"'{path}' was built of other weights of {self._model} than those in use; "
                    f"build it again: {bundle.manifest.rebuild_command()}"
                )
            self._programs[path] = Program(self.device, self._tensorrt, bundle)
        return self._programs[path]

    def close(self) -> None:
        """Close everything that was loaded and release the device; closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        for program in self._programs.values():
            program.close()
        self._programs.clear()
        self.device.release()


def check(backend: str, model: str | None, bundles: Path) -> None:
    """Raise the error that says why the backend ``backend`` cannot run ``model`` here."""
    need_driver()
    module = MODULES[backend]
    if not find_module(module):
        raise MissingExtraError(f"backend '{backend}'", module, "gpu")
    Device().release()
    if not any(bundles.glob(f"{model or '*'}-*-{backend}/{MANIFEST}")):
        named = f" --model {model}" if model else ""
        raise BackendError(
            f"nothing is built for '{backend}' in '{bundles}'; run: python -m engine.build --fp16"
            f"{named} --runtime {backend}"
        )


def find_module(name: str) -> bool:
    """Whether a package is installed, without importing it."""
    return importlib.util.find_spec(name) is not None
