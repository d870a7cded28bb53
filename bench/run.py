"""Speed, memory and agreement of every network, backend and memory policy that this machine runs.

Without options: about five minutes at 240p. Rows take turns of five frames, each in a process of
its own; the demo's frames are decoded and shrunk beforehand. Clips: "short" is the demo clip;
"prefilled" times 20 frames with the memory as large as after 1× and 10× the clip; "long" plays the
clip forwards and backwards ten times. Writes a line of JSON a row, a Markdown table and plots.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `python bench/run.py`

from tqdm import tqdm

from bench import compare, plots, published, report
from bench.cases import BACKENDS, COMPILED, Case, expand, make_random_weights
from bench.common import RESULTS, cores, numbers, words
from bench.harness import CLIPS, Group, Plan, Row
from bench.rivals import parse_rival
from engine import errors
from engine.errors import InputError
from engine.files import make_folder
from engine.memory import POLICIES
from engine.runtime import status
from engine.weights import DEFAULT_MODEL, MODELS


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python bench/run.py", description=__doc__)
    what = p.add_argument_group("what is compared (lists are separated by commas)")
    what.add_argument("--models", type=words, help="default: all three networks")
    what.add_argument("--backends", type=words, help="default: all but those that compile first")
    what.add_argument("--memory", type=words, default=POLICIES, help="default: finite,infinite")
    what.add_argument("--clips", type=words, help=f"of {', '.join(CLIPS)}; default: the first two")
    what.add_argument("--objects", type=numbers, help="default: 1")
    what.add_argument("--sizes", type=numbers, help="short sides in pixels; default: 240")
    what.add_argument(
        "--rival",
        action="append",
        default=[],
        metavar="NAME=PATH[:WEIGHTS]",
        help="time your own checkout of XMem, STCN or Cutie, too (it runs that code); random "
        "weights if none are given; may be repeated",
    )
    what.add_argument(
        "--random-weights",
        action="store_true",
        help="time networks without trained weights, too (extra 'build')",
    )
    much = p.add_argument_group("how much is measured")
    much.add_argument("--frames", type=int, help="length of the clip; default: 60")
    much.add_argument("--threads", type=int, default=cores(), help="default: %(default)s")
    mode = much.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="one network, 20 frames: a minute")
    mode.add_argument(
        "--full",
        action="store_true",
        help="all backends and clips, 1, 3 and 5 objects, 240, 480 and 720 pixels: hours on a CPU",
    )
    much.add_argument("--davis", type=Path, metavar="ROOT", help="measure J&F on this folder, too")
    much.add_argument("--sequences", type=words, help="of --davis; default: all")
    told = p.add_argument_group("results")
    told.add_argument("--out", type=Path, default=Path("build/bench"), help="default: %(default)s")
    told.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A.jsonl", "B.jsonl"),
        help="only print the speeds of B over those of A, and which differences are noise",
    )
    told.add_argument(
        "--published",
        action="store_true",
        help="only print the paper's tables beside the results in --out",
    )
    told.add_argument(
        "--readme",
        type=Path,
        nargs="?",
        const=report.PAGE,
        metavar="FILE",
        help="only write the results in --out, and plots, into docs/benchmark.md (or FILE)",
    )
    return p


def make_plan(options: argparse.Namespace) -> Plan:
    """How much to measure; raises InputError for what makes no sense."""
    clips = options.clips or (CLIPS if options.full else CLIPS[:2])
    unknown = sorted(set(clips) - set(CLIPS))
    if unknown:
        raise InputError(f"unknown clip '{unknown[0]}'; choose among: {', '.join(CLIPS)}")
    frames = options.frames or (20 if options.quick else 60)
    if frames < 6 or options.threads < 1:
        raise InputError("--frames must be at least 6 and --threads at least 1")
    small = options.quick
    return Plan(
        clips,
        frames,
        prefilled=10 if small else 20,
        stage_frames=3 if small else 5,
        command_frames=15 if small else 30,
        threads=options.threads,
        davis=options.davis,
        sequences=options.sequences,
    )


def make_cases(options: argparse.Namespace) -> list[Case]:
    """The cases that the options name."""
    folder = None
    if options.random_weights:
        folder = options.out / "random-weights"
        make_folder(folder)
        make_random_weights(folder)
    everything = (*BACKENDS, *(b for b in status() if b not in BACKENDS))
    backends = everything if options.full else [b for b in everything if b not in COMPILED]
    return list(
        expand(
            options.models or ((DEFAULT_MODEL,) if options.quick else MODELS),
            options.backends or backends,
            options.memory,
            options.objects or ((1, 3, 5) if options.full else (1,)),
            options.sizes or ((240, 480, 720) if options.full else (240,)),
            folder,
            [parse_rival(text) for text in options.rival],
        )
    )


def measure(cases: Sequence[Case], plan: Plan, log_path: Path) -> list[Row]:
    """Measure all cases, a size and number of objects at a time."""
    groups: dict[tuple[int, int], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.size, case.objects), []).append(case)
    rows: list[Row] = []
    with log_path.open("wb") as log, tqdm(bar_format="{elapsed} {desc}") as bar:
        say: Callable[..., Any] = bar.set_description_str
        for group in groups.values():
            with tempfile.TemporaryDirectory() as scratch:
                rows += Group(group, plan, Path(scratch), log, say).run()
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, or tell of its results, and return the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    options = build_parser().parse_args(arguments)
    return errors.run(lambda: _do(options, arguments))


def _do(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    out: Path = options.out
    if options.compare:
        print(compare.table(*(report.read(path) for path in options.compare)))
    elif options.published:
        results = report.read(out / RESULTS) if (out / RESULTS).is_file() else None
        print(published.table(results))
    elif options.readme:
        report.write_page(options.readme, report.read(out / RESULTS), out)
    else:
        run(options, out, arguments)


def run(options: argparse.Namespace, out: Path, arguments: Sequence[str]) -> None:
    """Measure, write everything and print the table; ``arguments``: the options as they came."""
    make_folder(out)
    plan = make_plan(options)
    cases = make_cases(options)
    rows = measure(cases, plan, out / "workers.log")
    results = report.Results(report.conditions(plan, arguments), rows)
    report.write(out / RESULTS, results)
    text = report.markdown(results)
    report.write_text(out / "results.md", text)
    for path in plots.draw(results, out):
        text += f"\nplot: {path}"
    print(text)


if __name__ == "__main__":
    raise SystemExit(main())
