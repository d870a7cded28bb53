"""Ahead-of-time compilation: ``python -m kernels.aot --target sm_80,sm_86 [--out DIR]``.

Writes ``NAME.TARGET.cubin``, ``.ptx`` and ``.json`` for every kernel that the engine launches. No
GPU and no torch are needed, and the same sources, Triton and targets give the same bytes. The JSON
says how to launch: kernel name, threads, shared memory, grid rule, parameters in order. Triton
appends two scratch pointers that its own launcher fills; whoever launches by hand passes null.

Longer than other files, because the list of every kernel's parameters stands here once.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernels import tiles
from kernels.cubin import Resources, inspect

DEFAULT_OUT = Path("build/kernels")
FORMAT = 1
#: MobileVOS: Ck = Cv = 64.
KEY_DIM = VALUE_DIM = 64
#: What Triton appends to every kernel's parameters. These kernels need neither.
SCRATCH = ("global_scratch", "profile_scratch")
_CTYPES = {"fp16": "*fp16", "fp32": "*fp32"}


@dataclass(frozen=True)
class Variant:
    """One kernel, with everything that is fixed at compile time.

    types: every run-time parameter in order, as Triton names types; constants: all others.
    grid: the blocks along x, y, z in terms of N (positions), K (objects) and other parameters.
    """

    op: str
    name: str
    module: str
    function: str
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    warps: int
    stages: int
    grid: tuple[str, str, str]


@dataclass(frozen=True)
class Compiled:
    """A variant's code for one target."""

    variant: Variant
    target: str
    symbol: str
    cubin: bytes
    ptx: str
    shared: int
    resources: Resources


def memory_read_variant(
    target: str, dtype: str, key_dim: int, value_dim: int, block_v: int
) -> Variant:
    """The memory read for one shape class and value width."""
    shape_class = tiles.read_class(dtype, key_dim, value_dim, block_v)
    tile = tiles.table()["memory_read"][target][shape_class]
    block_m, block_n = tile.block
    pointer = _CTYPES[dtype]
    return Variant(
        op="memory_read",
        name=f"memory_read-{dtype}-ck{key_dim}-cv{value_dim}-v{block_v}",
        module="kernels.memory_read.triton_impl",
        function="memory_read_kernel",
        types=(
            ("query", pointer),
            ("keys", pointer),
            ("values", pointer),
            ("slots", "*i32"),
            ("out", pointer),
            ("partial", "*fp32"),
            ("lse", "*fp32"),
            ("positions", "i32"),
            ("objects", "i32"),
            ("reads", "i32"),
            ("capacity", "i32"),
            ("splits", "i32"),
        ),
        constants=(
            ("SCALE", tiles.LOG2E / key_dim**0.5),
            ("CK", key_dim),
            ("CV", value_dim),
            ("BLOCK_M", block_m),
            ("BLOCK_N", block_n),
            ("BLOCK_V", block_v),
        ),
        warps=tile.warps,
        stages=tile.stages,
        grid=(
            f"ceil(positions / {block_m})",
            f"ceil(objects * {value_dim} / {block_v})",
            "splits",
        ),
    )


def merge_variant(dtype: str, value_dim: int) -> Variant:
    """The kernel that joins the memory read's splits."""
    return Variant(
        op="memory_read_merge",
        name=f"memory_read_merge-{dtype}-cv{value_dim}",
        module="kernels.memory_read.triton_impl",
        function="memory_read_merge_kernel",
        types=(
            ("partial", "*fp32"),
            ("lse", "*fp32"),
            ("out", _CTYPES[dtype]),
            ("rows", "i32"),
            ("splits", "i32"),
        ),
        constants=(
            ("CV", value_dim),
            ("BLOCK_R", tiles.MERGE_ROWS),
            ("BLOCK_C", tiles.MERGE_COLUMNS),
        ),
        warps=tiles.MERGE_WARPS,
        stages=1,
        grid=(f"ceil(rows / {tiles.MERGE_ROWS})", str(value_dim // tiles.MERGE_COLUMNS), "1"),
    )


def preprocess_variant(target: str, dtype: str) -> Variant:
    """The preprocessing kernel that writes ``dtype``."""
    tile = tiles.table()["preprocess"][target]["pixels"]
    return Variant(
        op="preprocess",
        name=f"preprocess-{dtype}",
        module="kernels.preprocess.triton_impl",
        function="preprocess_kernel",
        types=(
            ("frame", "*u8"),
            ("out", _CTYPES[dtype]),
            ("height_in", "i32"),
            ("width_in", "i32"),
            ("height", "i32"),
            ("width", "i32"),
            ("rows", "i32"),
            ("columns", "i32"),
        ),
        constants=(("BLOCK", tile.block[0]),),
        warps=tile.warps,
        stages=tile.stages,
        grid=(f"ceil(rows * columns / {tile.block[0]})", "1", "1"),
    )


def mask_head_variant(target: str, dtype: str) -> Variant:
    """The mask head kernel that reads ``dtype`` probabilities."""
    tile = tiles.table()["mask_head"][target]["pixels"]
    return Variant(
        op="mask_head",
        name=f"mask_head-{dtype}",
        module="kernels.mask_head.triton_impl",
        function="mask_head_kernel",
        types=(
            ("probabilities", _CTYPES[dtype]),
            ("ids", "*u8"),
            ("out", "*u8"),
            ("channels", "i32"),
            ("rows", "i32"),
            ("columns", "i32"),
            ("height", "i32"),
            ("width", "i32"),
            ("height_out", "i32"),
            ("width_out", "i32"),
        ),
        constants=(("BLOCK", tile.block[0]),),
        warps=tile.warps,
        stages=tile.stages,
        grid=(f"ceil(height_out * width_out / {tile.block[0]})", "1", "1"),
    )


def variants(target: str, key_dim: int = KEY_DIM, value_dim: int = VALUE_DIM) -> list[Variant]:
    """Every kernel of a frame on ``target``: fp16 and fp32, one object and several."""
    found = []
    for dtype in ("fp16", "fp32"):
        blocks = {tiles.value_block(dtype, objects, value_dim) for objects in (1, 2)}
        found += [memory_read_variant(target, dtype, key_dim, value_dim, b) for b in sorted(blocks)]
        found += [merge_variant(dtype, value_dim), preprocess_variant(target, dtype)]
    return [*found, mask_head_variant(target, "fp32")]


@functools.cache
def compile_variant(variant: Variant, target: str) -> Compiled:
    """Compile with Triton for ``target``, with or without a GPU in the machine."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if triton.knobs.runtime.interpret:
        raise RuntimeError("kernels.aot cannot compile under TRITON_INTERPRET; unset it")
    kernel = getattr(importlib.import_module(variant.module), variant.function)
    types, constants = dict(variant.types), dict(variant.constants)
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in kernel.arg_names},
        constexprs=constants,
        # Every pointer that has more than a byte for an element must be aligned to 16 bytes.
        attrs={
            (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
            for name, kind in types.items()
            if kind.startswith("*") and kind != "*u8"
        },
    )
    options = {
        "num_warps": variant.warps,
        "num_stages": variant.stages,
        # Said here because Triton's default is about to change.
        "enable_fp_fusion": True,
    }
    with triton.knobs.compilation.scope():
        # Line tables hold this machine's paths: the same code must give the same bytes.
        triton.knobs.compilation.disable_line_info = True
        built = triton.compile(
            source, target=GPUTarget("cuda", int(target[3:]), 32), options=options
        )
    cubin = built.asm["cubin"]
    entry = re.search(r"\.entry \w+\((.*?)\)", built.asm["ptx"], re.DOTALL)
    found = entry.group(1).count(".param") if entry else 0
    if found != len(types) + len(SCRATCH):
        raise RuntimeError(
            f"{variant.name}: the code has {found} parameters, expected {len(types)} and "
            f"{len(SCRATCH)} scratch pointers: Triton {triton.__version__} launches otherwise"
        )
    shared = int(built.metadata.shared)
    return Compiled(
        variant=variant,
        target=target,
        symbol=str(built.metadata.name),
        cubin=cubin,
        ptx=built.asm["ptx"],
        shared=shared,
        resources=inspect(cubin, target, variant.warps, shared),
    )


def launch_metadata(built: Compiled) -> dict[str, Any]:
    """What a launcher must know, and what the compiler made of the kernel."""
    import triton

    v = built.variant
    scratch = [{"name": name, "type": "null pointer"} for name in SCRATCH]
    built_for = re.search(r"^\.target (sm_\w+)", built.ptx, re.MULTILINE)
    return {
        "format": FORMAT,
        "op": v.op,
        "name": v.name,
        "target": built.target,
        # A cubin for sm_90a, sm_100a or sm_120a runs on that capability alone; the others also on
        # a newer minor one.
        "code_for": built_for.group(1) if built_for else built.target,
        "kernel": built.symbol,
        "threads": v.warps * 32,
        "shared": built.shared,
        "grid": list(v.grid),
        "parameters": [{"name": n, "type": t} for n, t in v.types] + scratch,
        "constants": dict(v.constants),
        "stages": v.stages,
        "resources": asdict(built.resources),
        "triton": triton.__version__,
        "sha256": {
            "cubin": hashlib.sha256(built.cubin).hexdigest(),
            "ptx": hashlib.sha256(built.ptx.encode()).hexdigest(),
        },
    }


def write(built: Compiled, folder: Path) -> Path:
    """Write one variant's three files; returns the JSON's path."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{built.variant.name}.{built.target}"
    (folder / f"{stem}.cubin").write_bytes(built.cubin)
    (folder / f"{stem}.ptx").write_text(built.ptx)
    file = folder / f"{stem}.json"
    file.write_text(json.dumps(launch_metadata(built), indent=2) + "\n")
    return file


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 on success, 2 on a usage error."""
    known = list(tiles.SHARED_LIMIT)
    parser = argparse.ArgumentParser(
        prog="python -m kernels.aot", description="Compile the GPU kernels. Needs no GPU."
    )
    parser.add_argument(
        "--target",
        default=",".join(known),
        help=f"comma-separated architectures (default: all: {', '.join(known)})",
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="default: %(default)s")
    parser.add_argument("--key-dim", type=int, default=KEY_DIM, choices=(32, 64, 128))
    parser.add_argument("--value-dim", type=int, default=VALUE_DIM, help="multiple of 64 up to 512")
    options = parser.parse_args(arguments)
    targets = [t for t in options.target.split(",") if t]
    for target in targets:
        if target not in known:
            parser.error(f"unknown target {target!r}; known: {', '.join(known)}")
    if not targets:
        parser.error(f"--target names none; known: {', '.join(known)}")
    if options.value_dim not in range(64, 513, 64):
        parser.error(f"--value-dim must be a multiple of 64 up to 512, got {options.value_dim}")
    try:
        import triton  # noqa: F401
    except ImportError:
        print("kernels.aot needs the package 'triton': pip install triton", file=sys.stderr)
        return 2
    for target in targets:
        for variant in variants(target, options.key_dim, options.value_dim):
            built = compile_variant(variant, target)
            r = built.resources
            print(
                f"{write(built, options.out)}: {r.registers} registers, {r.spills} B spilled, "
                f"{r.shared} B shared, {r.tensor_core} tensor-core instructions"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
