"""A bundle on a device: its engines deserialised, its kernels loaded. Holds no frame's buffers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import BackendError, ModelError
from engine.frames import Geometry
from engine.runtime.gpu.driver import Device, Scope
from engine.runtime.gpu.tensorrt import REBUILD, Context, RuntimeCache, TensorRT
from kernels import launch
from kernels.tiles import value_block

if TYPE_CHECKING:
    from engine.bundle import Bundle

#: Tensors that lie in the memory's slots or in the block of controls, not in buffers of their own.
_ELSEWHERE = {"keys", "values", "slots", "use_given", "active"}
_SMALLEST_POOL = 4
ALIGNMENT = 256  # bytes: what TensorRT asks of a tensor's address


@dataclass(frozen=True)
class Tensor:
    """A stage's input or output."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Dense size."""
        return math.prod(self.shape) * self.dtype.itemsize


class Program:
    """One bundle, ready for plans. ``objects``: its bucket. ``read``: ``triton`` or ``graph``.

    Raises ModelError: built for other GPUs, another TensorRT, or damaged.
    """

    def __init__(self, device: Device, tensorrt: TensorRT, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.objects, self.precision, self.read = (
            manifest.objects,
            manifest.precision,
            manifest.read,
        )
        self._scope = Scope(device)
        tensors: dict[str, Tensor] = {}
        for stage in manifest.stages.values():
            for name, t in {**stage.inputs, **stage.outputs}.items():
                tensors[name] = Tensor(np.dtype(t.dtype), tuple(t.shape))
        key = tensors["key"]
        self.dtype, self.key_dim = key.dtype, key.shape[-1]
        self.value_dim = tensors["value"].shape[-1]
        self._slots = tensors["keys"].shape[0] if self.read == "graph" else None
        # Engines write straight into a slot, unless it begins off TensorRT's alignment, or the
        # pool is an input as well: outputs must not lie in inputs.
        self.writes_slots = self.read == "triton" and all(
            tensors[name].bytes % ALIGNMENT == 0 for name in ("key", "value")
        )
        elsewhere = _ELSEWHERE | ({"key", "value"} if self.writes_slots else set())
        self.shared = {name: t for name, t in tensors.items() if name not in elsewhere}
        self.cache = None
        if tensorrt.flavour == "tensorrt-rtx":
            pin = bundle.sha256[:12]
            file = bundle.folder.with_name(f"{bundle.folder.name}.{device.arch}.{pin}.cache")
            self.cache = RuntimeCache(file)
        try:
            self._engines = {
                name: tensorrt.load(*bundle.engine(name, device.arch)) for name in manifest.stages
            }
            self.kernels = self._load_kernels(device, bundle)
        except BaseException:
            self._scope.close()
            raise
        self.scratch = max(engine.scratch for engine in self._engines.values())

    def _load_kernels(self, device: Device, bundle: Bundle) -> dict[str, launch.Kernel]:
        precision, ck, cv = self.precision, self.key_dim, self.value_dim
        soft = "fp16" if self.shared["probabilities"].dtype == np.float16 else "fp32"
        names = {"preprocess": f"preprocess-{precision}", "mask_head": f"mask_head-{soft}"}
        if self.read == "triton":
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
                    f"{REBUILD}"
                ) from None
            self._scope.keep(kernels[op].unload)
        return kernels

    def pool_slots(self, wanted: int) -> int:
        """How many slots the pool gets for ``wanted`` of them; raises BackendError if too many."""
        if self._slots is None:
            return max(wanted, _SMALLEST_POOL)
        if wanted > self._slots:
            raise BackendError(
                f"this bundle's memory has {self._slots} slots, but {wanted} are needed; build "
                "one with --read triton, whose memory grows"
            )
        return self._slots

    def context(self, stage: str, addresses: Mapping[str, int], scratch: int) -> Context:
        """A stage's engine with its tensors at ``addresses``, activations at ``scratch``."""
        return self._engines[stage].context(scratch, addresses, self.cache)

    def close(self) -> None:
        """Write the runtime cache, unload the kernels, free the engines."""
        if self.cache is not None:
            self.cache.save()
        self._engines.clear()
        self._scope.close()


class Library:
    """The bundles of one model, flavour and precision on one device; loaded when first needed."""

    def __init__(self, device: Device, tensorrt: TensorRT, bundles: Sequence[Bundle]) -> None:
        self.device, self._tensorrt = device, tensorrt
        self.flavour = tensorrt.flavour
        self._bundles = sorted(bundles, key=lambda b: b.manifest.objects)
        self._programs: dict[int, Program] = {}

    def check(self, geometry: Geometry) -> None:
        """Raise BackendError unless there is a bundle for the network's size."""
        self._fitting(geometry)

    def _fitting(self, geometry: Geometry) -> list[Bundle]:
        fitting = [b for b in self._bundles if tuple(b.manifest.size) == geometry.padded]
        if not fitting:
            height, width = geometry.padded
            have = sorted({f"{h}x{w}" for h, w in (b.manifest.size for b in self._bundles)})
            raise BackendError(
                f"no bundle for this video: its frames are {height}x{width} to the network, built "
                f"are {', '.join(have)}; run: python -m engine.build --fp16 --size "
                f"{height}x{width}, or use --backend cpu"
            )
        return fitting

    def program(self, geometry: Geometry, objects: int) -> Program:
        """The smallest bucket that holds ``objects``; raises BackendError if there is none."""
        fitting = self._fitting(geometry)
        bundle = next((b for b in fitting if b.manifest.objects >= objects), None)
        if bundle is None:
            bucket = 1 << (objects - 1).bit_length()
            height, width = geometry.padded
            raise BackendError(
                f"{objects} objects, but the largest bundle holds "
                f"{fitting[-1].manifest.objects}; run: python -m engine.build --fp16 --size "
                f"{height}x{width} --objects {bucket}"
            )
        if id(bundle) not in self._programs:
            self._programs[id(bundle)] = Program(self.device, self._tensorrt, bundle)
        return self._programs[id(bundle)]

    def close(self) -> None:
        """Close all that was loaded and release the device; closing twice is fine."""
        programs, self._programs = list(self._programs.values()), {}
        for program in programs:
            program.close()
        if self._bundles:
            self._bundles = []
            self.device.release()
