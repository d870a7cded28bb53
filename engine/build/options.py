"""What `python -m engine.build` is to build: the options and their command line."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from engine import bundle
from engine.data.clips import Clip
from engine.runtime.gpu.tensorrt import MODULES
from engine.weights import FOLDER, MODELS

SIZE = (480, 864)
FRAMES = 6


@dataclass(frozen=True)
class Options:
    """What to build. size: (H, W), the network's padded resolution. objects: the buckets, a bundle
    each. dynamic: least and greatest side, for one engine of all sizes between. targets and runtime
    None: chosen by what is there. frames: of the clip that agreement is checked on."""

    models: tuple[str, ...] = ()
    precision: str = "fp16"
    size: tuple[int, int] = SIZE
    objects: tuple[int, ...] = (1,)
    targets: tuple[str, ...] | None = None
    runtime: str | None = None
    dynamic: tuple[int, int] | None = None
    out: Path = bundle.DEFAULT_FOLDER
    weights: Path = FOLDER
    frames: int = FRAMES


@dataclass(frozen=True)
class Job:
    """Options with all choices made."""

    options: Options
    runtime: str
    version: str
    targets: tuple[str, ...]
    clip: Clip


def parse(argv: list[str] | None) -> tuple[Options, bool]:
    """Parse the command line. Returns the options, and whether only the report is wanted."""
    p = argparse.ArgumentParser(
        prog="python -m engine.build",
        description="Build TensorRT engines and GPU kernels. With TensorRT for RTX no GPU is "
        "needed. The folder's hashes find corruption, not malice: load only bundles you trust.",
    )
    kind = p.add_mutually_exclusive_group()
    for name in bundle.PRECISIONS:
        kind.add_argument(
            f"--{name}", dest="precision", action="store_const", const=name, help=_PRECISION[name]
        )
    p.add_argument("--model", nargs="+", default=[], choices=MODELS, help="default: all trained")
    p.add_argument(
        "--size", type=_size, default=SIZE, metavar="HxW", help="of the network (default: 480x864)"
    )
    p.add_argument(
        "--objects", type=_objects, nargs="+", default=[1], metavar="K", help="buckets (default: 1)"
    )
    p.add_argument(
        "--target", nargs="+", metavar="sm_86", help="default: this GPU's, or without one all"
    )
    p.add_argument("--runtime", choices=MODULES, help="default: what is installed")
    p.add_argument(
        "--dynamic",
        type=_range,
        metavar="MINxMAX",
        help="one engine for all networks with sides from MIN to MAX, tuned for --size",
    )
    p.add_argument("--out", type=Path, default=bundle.DEFAULT_FOLDER, help="default: %(default)s")
    p.add_argument("--weights", type=Path, default=FOLDER, metavar="DIR", help="of other models")
    p.add_argument("--report", action="store_true", help="print costs and bounds, build nothing")
    a = p.parse_args(argv)
    if a.dynamic and not all(a.dynamic[0] <= side <= a.dynamic[1] for side in a.size):
        p.error("--size must lie within --dynamic")
    options = Options(
        models=tuple(a.model),
        precision=a.precision or "fp16",
        size=a.size,
        objects=tuple(sorted(set(a.objects))),
        targets=tuple(a.target) if a.target else None,
        runtime=a.runtime,
        dynamic=a.dynamic,
        out=a.out,
        weights=a.weights,
    )
    return options, a.report


_PRECISION = {"fp16": "half precision (default)", "fp32": "single precision, without TF32"}


def _sides(text: str, what: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    sides = tuple(int(x) for x in found.groups()) if found else ()
    if len(sides) != 2 or any(s < 32 or s % 16 for s in sides):
        raise argparse.ArgumentTypeError(f"'{text}' is not {what}, multiples of 16 from 32 on")
    return sides[0], sides[1]


def _size(text: str) -> tuple[int, int]:
    return _sides(text, "HxW")


def _range(text: str) -> tuple[int, int]:
    low, high = _sides(text, "MINxMAX")
    if low > high:
        raise argparse.ArgumentTypeError(f"'{text}': MIN is above MAX")
    return low, high


def _objects(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if not 1 <= value <= 255:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of objects, 1 to 255")
    return value
