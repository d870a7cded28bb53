"""What the kernels' machine code does, in host memory: the kernels' own PyTorch references.

``Code`` knows the code by its bytes, through the JSON that ``kernels.aot`` wrote beside it, and so
checks every launch: parameters in order, null scratch pointers, grid, threads, live memory.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from doubles.machine import Machine, Misuse
from kernels.launch import grid as grid_of
from kernels.mask_head.reference import mask_head_reference
from kernels.memory_read.reference import memory_read_reference
from kernels.preprocess.reference import preprocess_reference

DTYPES = {"*fp16": np.float16, "*fp32": np.float32}


class Code:
    """The kernels of some folders. ``interpreter``: run them there instead of by reference."""

    def __init__(self, machine: Machine, interpreter: Any = None) -> None:
        self.machine, self.interpreter = machine, interpreter
        self._known: dict[str, dict[str, Any]] = {}

    def learn(self, folder: Path) -> None:
        """Know the cubins of a folder."""
        for file in folder.glob("*.json"):
            metadata = json.loads(file.read_text())
            if "kernel" in metadata:
                self._known[metadata["sha256"]["cubin"]] = metadata

    def metadata(self, image: bytes) -> dict[str, Any]:
        return self._known[hashlib.sha256(image).hexdigest()]

    def launch(
        self, image: bytes, grid: tuple[int, ...], block: tuple[int, ...], packed: Any
    ) -> Callable[[], None]:
        """Check a launch; returns what it does."""
        metadata = self.metadata(image)
        values, types = packed
        parameters = metadata["parameters"]
        assert len(values) == len(types) == len(parameters)
        arguments: dict[str, int] = {}
        for parameter, value, kind in zip(parameters, values, types, strict=True):
            wanted = ctypes.c_int32 if parameter["type"] == "i32" else ctypes.c_void_p
            assert kind is wanted and isinstance(value, int), parameter
            if parameter["type"] == "null pointer":
                assert value == 0
            else:
                arguments[parameter["name"]] = value
                aligned = parameter["type"] in ("i32", "*u8") or value % 16 == 0
                assert aligned, f"{parameter['name']} must be aligned to 16 bytes"
        assert grid == grid_of(metadata["grid"], arguments)
        assert block == (metadata["threads"], 1, 1)
        types_of = {p["name"]: p["type"] for p in parameters}
        function = getattr(self, f"_{metadata['op']}")
        return lambda: function(arguments, types_of, metadata["constants"])

    def _preprocess(self, a: dict[str, int], types: dict[str, str], constants: Any) -> None:
        dtype = DTYPES[types["out"]]
        frame = self.machine.array(a["frame"], (a["height_in"], a["width_in"], 3), np.uint8)
        out = self.machine.array(a["out"], (1, 3, a["rows"], a["columns"]), dtype)
        if self.interpreter:
            name = np.dtype(dtype).name
            out[:] = self.interpreter.preprocess(frame.copy(), a["height"], a["width"], name)
        else:
            image = preprocess_reference(torch.from_numpy(frame), a["height"], a["width"])
            out[:] = image.numpy()

    def _memory_read(self, a: dict[str, int], types: dict[str, str], constants: Any) -> None:
        dtype = DTYPES[types["query"]]
        n, k, r, s = a["positions"], a["objects"], a["reads"], a["capacity"]
        ck, cv = constants["CK"], constants["CV"]
        array = self.machine.array
        query = array(a["query"], (n, ck), dtype)
        keys, values = array(a["keys"], (s, n, ck), dtype), array(a["values"], (s, k, n, cv), dtype)
        slots = array(a["slots"], (k, r), np.int32)
        if slots.min() < -1 or slots.max() >= s:
            raise Misuse(f"the slot table is corrupt: {slots.tolist()}")
        if self.interpreter:
            arrays = (query.copy(), keys.copy(), values.copy(), slots.copy())
            readout = self.interpreter.memory_read(*arrays)
        else:
            # The reference multiplies what it does not read by zero: that must not be NaN.
            blank = [np.zeros_like(x[:1]) for x in (keys, values)]
            full = [np.concatenate(pair) for pair in zip(blank, (keys, values), strict=True)]
            tensors = [torch.from_numpy(x).float() for x in (query, *full)]
            table = torch.from_numpy(np.where(slots < 0, -1, slots + 1))
            readout = memory_read_reference(*tensors, table).numpy()
        if a["splits"] == 1:
            array(a["out"], (k, n, cv), dtype)[:] = readout
        else:
            # All of it in the last part, which the merge must give its full weight.
            partial = array(a["partial"], (a["splits"], k, n, cv), np.float32)
            lse = array(a["lse"], (a["splits"], k, n), np.float32)
            partial[:], lse[:] = 0, -np.inf
            partial[-1], lse[-1] = readout, 3.0

    def _memory_read_merge(self, a: dict[str, int], types: dict[str, str], constants: Any) -> None:
        rows, cv = a["rows"], constants["CV"]
        partial = self.machine.array(a["partial"], (a["splits"], rows, cv), np.float32)
        lse = self.machine.array(a["lse"], (a["splits"], rows), np.float32)
        weight = np.exp2(lse - lse.max(0))
        out = self.machine.array(a["out"], (rows, cv), DTYPES[types["out"]])
        out[:] = (weight[:, :, None] * partial).sum(0) / weight.sum(0)[:, None]

    def _mask_head(self, a: dict[str, int], types: dict[str, str], constants: Any) -> None:
        shape = (a["channels"], a["rows"], a["columns"])
        soft = self.machine.array(a["probabilities"], shape, DTYPES[types["probabilities"]])
        ids = self.machine.array(a["ids"], (a["channels"],), np.uint8)
        size, crop = (a["height_out"], a["width_out"]), (a["height"], a["width"])
        out = self.machine.array(a["out"], size, np.uint8)
        if self.interpreter:
            # Its ids must be distinct, to see that every pixel is written: number the channels.
            numbers = np.arange(len(ids), dtype=np.uint8)
            out[:] = ids[self.interpreter.mask_head(soft.copy(), numbers, size, crop)]
        else:
            tensors = torch.from_numpy(soft), torch.from_numpy(ids.copy())
            out[:] = mask_head_reference(*tensors, size, crop).numpy()
