"""Drive libmvos against the stand-in driver: check_launches.py LIBMVOS FAKE_LIBCUDA CUBINS.

Every launch must have the image, kernel name, grid, block, shared memory and parameters that the
cubins' own metadata asks for, and the plan must be that of ``kernels.tiles``.
"""

from __future__ import annotations

import ctypes as c
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine import __version__
from kernels import tiles
from kernels.launch import grid

OK, INVALID, NO_CONTEXT, UNSUPPORTED, CUDA_ERROR = 0, 1, 3, 4, 5
ADDRESSES = {n: 0x7000_0000 + 0x100_0000 * i for i, n in enumerate(
    ("query", "keys", "values", "slots", "out", "workspace", "stream"))}  # fmt: skip


class Shape(c.Structure):
    _fields_ = [
        (n, c.c_int32)
        for n in ("dtype", "positions", "key_dim", "value_dim", "objects", "capacity", "reads")
    ]


class Plan(c.Structure):
    _fields_ = [("splits", c.c_int32), ("grid", c.c_uint32 * 3), ("workspace_bytes", c.c_size_t)]


class Launch(c.Structure):
    _fields_ = [
        ("kernel", c.c_char * 64),
        ("image", c.c_void_p),
        ("grid", c.c_uint * 3),
        ("block", c.c_uint * 3),
        ("shared", c.c_uint),
        ("stream", c.c_void_p),
        ("parameters", c.c_int),
        ("values", c.c_uint64 * 32),
    ]


def main(library: str, fake_library: str, folder: str) -> None:
    fake = c.CDLL(fake_library)  # its soname is libcuda.so.1: the library's dlopen finds it
    mvos = c.CDLL(library)
    mvos.mvos_error_message.restype = c.c_char_p
    metadata = [json.loads(p.read_text()) for p in sorted(Path(folder).glob("memory_read*.json"))]
    assert metadata

    targets = sorted({m["target"] for m in metadata}, key=lambda t: int(t[3:]))
    for target in targets:
        launches(mvos, fake, [m for m in metadata if m["target"] == target], Path(folder))
    loads = value(fake, "fake_load_count").value
    launches(mvos, fake, [m for m in metadata if m["target"] == targets[-1]], Path(folder))
    assert value(fake, "fake_load_count").value == loads, "a kernel was loaded twice"
    assert value(fake, "fake_inits").value == 1
    major, minor, patch = re.findall(r"\d+", __version__)
    assert mvos.mvos_version() == int(major) * 10000 + int(minor) * 100 + int(patch)
    capabilities(mvos, metadata)
    plans(mvos, fake, metadata)
    errors(mvos, fake, int(targets[0][3:]))
    print(f"{len(targets)} targets, {value(fake, 'fake_launch_count').value} launches checked")


def value(fake: Any, name: str, kind: Any = c.c_int) -> Any:
    return kind.in_dll(fake, name)


def play(fake: Any, capability: int, multiprocessors: int = 84) -> None:
    """Make the stand-in a card of this compute capability."""
    value(fake, "fake_major").value = capability // 10
    value(fake, "fake_minor").value = capability % 10
    value(fake, "fake_multiprocessors").value = multiprocessors


def call(mvos: Any, shape: Shape, workspace_bytes: int, **changes: int) -> int:
    a = ADDRESSES | changes
    pointers = [c.c_void_p(a[n]) for n in ("query", "keys", "values", "slots", "out", "workspace")]
    stream = c.c_void_p(a["stream"])
    return mvos.mvos_memory_read(c.byref(shape), *pointers, c.c_size_t(workspace_bytes), stream)


def launches(mvos: Any, fake: Any, metadata: list[dict[str, Any]], folder: Path) -> None:
    """Reads of many shapes on one target: what was launched is what the metadata says."""
    play(fake, int(metadata[0]["target"][3:]))
    for dtype, objects, positions, reads in itertools.product(
        ("fp16", "fp32"), (1, 2, 5), (1, 1620, 32400), (1, 2, 40)
    ):
        block_v = tiles.value_block(dtype, objects, 64)
        read = next(
            m for m in metadata
            if m["op"] == "memory_read" and dtype in m["name"]
            and m["constants"]["BLOCK_V"] == block_v
        )  # fmt: skip
        merge = next(m for m in metadata if m["op"] == "memory_read_merge" and dtype in m["name"])
        for name, m in (("fake_layout_read", read), ("fake_layout_merge", merge)):
            layout = "".join("i" if p["type"] == "i32" else "p" for p in m["parameters"])
            value(fake, name, c.c_char * 32).value = layout.encode()
        shape = Shape(int(dtype == "fp32"), positions, 64, 64, objects, 50, reads)
        plan = Plan()
        assert mvos.mvos_memory_read_plan(c.byref(shape), c.byref(plan)) == OK, message(mvos)
        count = value(fake, "fake_launch_count").value
        assert call(mvos, shape, plan.workspace_bytes) == OK, message(mvos)
        assert value(fake, "fake_launch_count").value - count == 1 + (plan.splits > 1)

        records = (Launch * 8).in_dll(fake, "fake_launches")
        numbers = {
            "positions": positions,
            "objects": objects,
            "reads": reads,
            "capacity": 50,
            "splits": plan.splits,
            "rows": objects * positions,
        }
        parts = plan.splits * objects * positions
        split = plan.splits > 1
        assert plan.workspace_bytes == (parts * 65 * 4 if split else 0)
        given = numbers | ADDRESSES | {"global_scratch": 0, "profile_scratch": 0}
        given["partial"] = ADDRESSES["workspace"] if split else ADDRESSES["out"]
        given["lse"] = given["partial"] + parts * 64 * 4 if split else ADDRESSES["out"]
        for i, m in enumerate([read, merge] if split else [read]):
            launch = records[(count + i) % 8]
            cubin = (folder / f"{m['name']}.{m['target']}.cubin").read_bytes()
            assert c.string_at(launch.image, len(cubin)) == cubin
            assert launch.kernel.decode() == m["kernel"]
            assert tuple(launch.grid) == grid(m["grid"], numbers)
            assert list(launch.block) == [m["threads"], 1, 1]
            assert launch.shared == m["shared"]
            if m["shared"] > 48 * 1024:
                assert value(fake, "fake_attribute_value").value == m["shared"]
            assert launch.stream == ADDRESSES["stream"]
            names = [p["name"] for p in m["parameters"]]
            assert dict(zip(names, launch.values[: launch.parameters], strict=True)) == {
                n: given[n] for n in names
            }


def capabilities(mvos: Any, metadata: list[dict[str, Any]]) -> None:
    code = {(int(m["target"][3:]), m["code_for"].endswith("a")) for m in metadata}
    for capability in (61, 70, 75, 80, 86, 87, 88, 89, 90, 100, 103, 120, 121):
        wanted = any(
            built == capability
            or (not exact and built // 10 == capability // 10 and built < capability)
            for built, exact in code
        )
        got = mvos.mvos_supports(capability // 10, capability % 10)
        assert got == wanted, (capability, got, wanted)


def plans(mvos: Any, fake: Any, metadata: list[dict[str, Any]]) -> None:
    """The same splits as the Python plan, over shapes and sizes of card."""
    seen = set()
    for m in metadata:
        if m["op"] != "memory_read":
            continue
        for multiprocessors, positions, objects, reads in itertools.product(
            (1, 16, 46, 84, 132, 148), (1, 33, 510, 1620, 8160), (1, 2, 3, 8), (1, 2, 7, 300)
        ):
            play(fake, int(m["target"][3:]), multiprocessors)
            dtype = m["name"].split("-")[1]
            shape = Shape(int(dtype == "fp32"), positions, 64, 64, objects, 300, reads)
            plan = Plan()
            assert mvos.mvos_memory_read_plan(c.byref(shape), c.byref(plan)) == OK, message(mvos)
            wanted = tiles.tile_memory_read(
                dtype, positions, 64, 64, objects, reads,
                arch=m["target"], multiprocessors=multiprocessors,
            )  # fmt: skip
            assert plan.splits == wanted.splits
            assert tuple(plan.grid) == wanted.grid(positions, objects, 64)
            seen.add(plan.splits)
    assert {1, tiles.SPLIT_LIMIT} <= seen, "the shapes do not exercise the model"


def message(mvos: Any) -> str:
    return mvos.mvos_error_message().decode()


def errors(mvos: Any, fake: Any, capability: int) -> None:
    """Each failure: its code, its message, and nothing launched."""
    play(fake, capability)
    count = value(fake, "fake_launch_count").value
    good = (0, 1620, 64, 64, 1, 2, 2)
    enough = 1 << 30

    def expect(code: int, text: str, shape: tuple[int, ...] = good, size: int = enough, **k: int):
        got = call(mvos, Shape(*shape), size, **k)
        assert (got, text in message(mvos)) == (code, True), (got, message(mvos))

    expect(INVALID, "query is NULL", query=0)
    expect(INVALID, "keys must be aligned to 16 bytes", keys=ADDRESSES["keys"] + 8)
    expect(INVALID, "workspace must hold", size=16)
    expect(INVALID, "workspace must hold", workspace=0)
    expect(INVALID, "shape.dtype must be MVOS_FP16 or MVOS_FP32, got 2", (2, 1620, 64, 64, 1, 2, 2))
    expect(INVALID, "shape.reads must be at least 1, got 0", (0, 1620, 64, 64, 1, 2, 0))
    expect(INVALID, "shape is too large", (0, 1 << 24, 64, 64, 8, 2, 2))
    expect(UNSUPPORTED, "Ck = 32, Cv = 64", (0, 1620, 32, 64, 1, 2, 2))
    for name in ("cuCtxGetDevice", "cuDeviceGetAttribute", "cuLaunchKernel"):
        value(fake, "fake_failing", c.c_char * 64).value = name.encode()
        expect(CUDA_ERROR, f"{name}")
        assert "unspecified launch failure (719)" in message(mvos)
    value(fake, "fake_failing", c.c_char * 64).value = b""
    value(fake, "fake_has_context").value = 0
    expect(NO_CONTEXT, "no current CUDA context")
    value(fake, "fake_has_context").value = 1
    play(fake, 61)
    expect(UNSUPPORTED, "no code for compute capability 6.1")
    play(fake, capability)
    assert value(fake, "fake_launch_count").value == count, "a failed call launched something"
    assert call(mvos, Shape(*good), enough) == OK


if __name__ == "__main__":
    main(*sys.argv[1:])
