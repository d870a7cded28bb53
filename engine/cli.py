"""The command line: ``python -m engine segment | demo | export | evaluate | validate | info``.

Longer than other files, because the options of all commands stand in one place.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, TypeVar

from engine import __version__
from engine.errors import run
from engine.options import LoadOptions
from engine.weights import FOLDER

DEFAULT_OUT = Path("mobilevos-out")
DEMO_OUT = Path("mobilevos-demo")
_DIGITS = 9  # of a number that an option takes

T = TypeVar("T")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 2 for errors of use, 3 for a truncated video."""
    options = build_parser().parse_args(arguments)
    return run(lambda: options.run(options))


def build_parser() -> argparse.ArgumentParser:
    """The parser; each command sets ``run``, a function of the parsed options."""
    parser = argparse.ArgumentParser(
        prog="python -m engine", description="Follow objects through a video, from a first mask."
    )
    parser.add_argument("--version", action="version", version=f"mobilevos-engine {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_segment(commands)
    _add_demo(commands)
    _add_export(commands)
    _add_evaluate(commands)
    _add_validate(commands)
    _add_info(commands)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that runs a model."""
    group = parser.add_argument_group("model")
    default = LoadOptions  # its fields' defaults
    group.add_argument("--model", default=default.model, help="default: %(default)s")
    group.add_argument(
        "--size",
        type=_positive,
        default=default.size,
        help="short side at which the network sees the frames (default: %(default)s)",
    )
    group.add_argument(
        "--backend", default=default.backend, help="default: %(default)s, the best there is"
    )
    group.add_argument("--threads", type=_positive, help="CPU threads (default: all cores)")
    group.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        default=default.weights,
        help="another folder to take the model from",
    )
    group.add_argument(
        "--bundles",
        type=Path,
        metavar="DIR",
        default=default.bundles,
        help="where python -m engine.build wrote what the GPU runs (default: %(default)s)",
    )
    group.add_argument(
        "--expect-sha256", metavar="HEX", help="load only the bundle whose manifest.json has it"
    )
    group.add_argument(
        "--memory",
        default=default.memory,
        metavar="POLICY",
        help="finite: remember the first and the most recent frame (default); infinite: every "
        "fifth frame too, slower and larger with every frame",
    )
    group.add_argument(
        "--blank-lost",
        action="store_true",
        help="make the pixels of an object that a frame lost background",
    )
    group.add_argument(
        "--tta",
        action="store_true",
        help="average with what the network makes of the mirrored frames: twice the time",
    )


def _add_segment(commands: Any) -> None:
    parser = commands.add_parser(
        "segment",
        help="follow the objects of a first mask through a video",
        description="Follow the objects of a first mask through a video. Writes OUT/masks/*.png "
        "(palette PNG, named by frame), OUT/overlay.mp4 and OUT/summary.json.",
    )
    parser.add_argument(
        "source",
        metavar="INPUT",
        help="a video file (- for standard input), a folder of images, a camera's number, or a "
        "stream's URL",
    )
    first = parser.add_mutually_exclusive_group(required=True)
    first.add_argument(
        "--mask",
        type=Path,
        metavar="FIRST.png",
        help="objects in the first frame: 0 is background, other values or colours are objects",
    )
    first.add_argument(
        "--box",
        type=_box,
        metavar="x,y,w,h",
        help="instead of a mask: a rectangle around one object, cut out roughly by GrabCut",
    )
    parser.add_argument(
        "--resize-mask", action="store_true", help="scale a mask of another size to the video's"
    )
    parser.add_argument(
        "--start", type=_index, default=0, metavar="N", help="first frame (default: 0)"
    )
    _add_range_and_output(parser, DEFAULT_OUT)
    add_model_options(parser)
    parser.set_defaults(run=_segment)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="follow the rabbit of Big Buck Bunny",
        description="Follow the rabbit through an excerpt of Big Buck Bunny that comes with the "
        f"package. Replaces earlier results in its default folder, {DEMO_OUT}.",
    )
    _add_range_and_output(parser, DEMO_OUT)
    add_model_options(parser)
    parser.set_defaults(run=_demo)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write results in the formats of other tools",
        description="Write the results of segment in the formats of other tools, to "
        "RESULTS/exports/. Only RESULTS/masks/ is read.",
    )
    parser.add_argument("results", type=Path, metavar="RESULTS", help="the --out of segment")
    parser.add_argument(
        "--format",
        type=_formats,
        required=True,
        metavar="NAME,…",
        help="any of coco, yolo, csv, jsonl, cvat, labelme",
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the files of frames that are there"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument(
        "--keep-lost",
        action="store_true",
        help="keep pixels of objects in frames that lost them; left out by default",
    )
    parser.set_defaults(run=_export)


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure J, F and J&F on a folder laid out as DAVIS",
        description="Measure J, F and J&F with the published evaluator (extra 'eval') on a folder "
        "laid out as DAVIS, and the speed beside them. The first and last frame do not count.",
    )
    parser.add_argument("--davis", type=Path, required=True, metavar="ROOT", help="the folder")
    parser.add_argument("--sequences", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="keep the masks and scores.json there"
    )
    add_model_options(parser)
    parser.set_defaults(run=_evaluate)


def _add_validate(commands: Any) -> None:
    parser = commands.add_parser(
        "validate",
        help="check a GPU bundle's files, and its graphs against PyTorch",
        description="Check the files of a bundle of python -m engine.build, compare its graphs "
        "with PyTorch (extra 'build') and write the figures to BUNDLE/validation.json.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument(
        "--expect-sha256", metavar="HEX", help="refuse a manifest.json with another SHA-256"
    )
    parser.add_argument(
        "--frames",
        type=_positive,
        default=6,
        metavar="N",
        help="of the clip (default: %(default)s)",
    )
    parser.add_argument(
        "--weights", type=Path, metavar="DIR", default=FOLDER, help="where the model's weights are"
    )
    parser.set_defaults(run=_validate)


def _add_info(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="version, backends and models",
        description="Print the version, which backends can run here and why not, and the models.",
    )
    parser.set_defaults(run=_info)


def _add_range_and_output(parser: argparse.ArgumentParser, out: Path) -> None:
    parser.add_argument("--end", type=_index, metavar="N", help="stop before this frame")
    parser.add_argument(
        "--every", type=_positive, default=1, metavar="N", help="use every Nth frame (default: 1)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=out,
        metavar="DIR",
        help="results go here (default: %(default)s)",
    )
    parser.add_argument(
        "--no-overlay", dest="overlay", action="store_false", help="write no overlay.mp4"
    )
    parser.add_argument(
        "--export",
        type=_formats,
        default=(),
        metavar="NAME,…",
        help="write OUT/exports/ too, in any of coco, yolo, csv, jsonl, cvat, labelme",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with an unfinished run in the same folder"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the results of an earlier run"
    )


def _segment(options: argparse.Namespace) -> None:
    from engine.commands.options import SegmentOptions
    from engine.commands.segment import segment

    segment(_fill(SegmentOptions, options, load=_fill(LoadOptions, options)), print, _warn)


def _demo(options: argparse.Namespace) -> None:
    from engine.commands.options import SegmentOptions
    from engine.commands.segment import segment
    from engine.data import demo

    options.overwrite |= options.out == DEMO_OUT and not options.resume
    told = {"source": str(demo.CLIP), "mask": demo.MASK, "credit": demo.CREDIT}
    load = _fill(LoadOptions, options)
    segment(_fill(SegmentOptions, options, load=load, **told), print, _warn)


def _export(options: argparse.Namespace) -> None:
    from engine.commands.export import export

    how = options.resume, options.overwrite, print, _warn, options.keep_lost
    export(options.results, options.format, *how)


def _evaluate(options: argparse.Namespace) -> None:
    from engine.commands.evaluate import evaluate
    from engine.segmenter import Segmenter

    with Segmenter.load(_fill(LoadOptions, options)) as segmenter:
        evaluate(segmenter, options.davis, options.sequences, options.out)


def _validate(options: argparse.Namespace) -> None:
    from engine.commands.validate import validate

    validate(options.bundle, options.weights, options.frames, options.expect_sha256, print)


def _info(options: argparse.Namespace) -> None:
    from engine.commands.info import describe

    for line in describe():
        print(line)


def _fill(kind: type[T], options: argparse.Namespace, **more: Any) -> T:
    """An instance of a dataclass with those of its fields that were parsed, and with ``more``."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{k: v for k, v in vars(options).items() if k in names}, **more)


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


def _formats(text: str) -> tuple[str, ...]:
    from engine.media.exports import FORMATS

    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(
                f"no format '{name}'; choose from {', '.join(FORMATS)}"
            )
    return names


def _index(text: str) -> int:
    value = int(text) if text.isdecimal() and len(text) <= _DIGITS else -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"'{text:.20}' is not a whole number from 0 to 999999999")
    return value


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() and len(text) <= _DIGITS else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text:.20}' is not a whole number from 1 to 999999999")
    return value


def _box(text: str) -> tuple[int, int, int, int]:
    try:
        x, y, w, h = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not x,y,w,h in whole pixels") from None
    return x, y, w, h
