"""What each part of the distillation is worth: ``python -m bench.ablation --davis ROOT``.

The same recipe is trained once a variant, with the same start, seed, clips and number of steps, and
measured on the development split. Killed, it goes on; what is finished is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import errors
from engine.errors import InputError, MissingExtraError
from engine.files import make_folder, write_atomic
from engine.train.config import DEVELOPMENT, Distillation, TrainConfig
from engine.train.recipes import CONFIGS

if TYPE_CHECKING:
    from engine.train.data import Clips
    from engine.train.distributed import Place

BEFORE = "the start"


def variants(full: Distillation) -> dict[str, Distillation]:
    """The rows of the table, each with the weights of ``full`` or with 0."""
    logits = dataclasses.replace(full, representation=0.0)
    return {
        "no distillation": dataclasses.replace(logits, logits=0.0),
        "logits": logits,
        "+ L_repr, ω = 1": dataclasses.replace(full, omega=1.0),
        "+ L_repr, ω = 0.95": dataclasses.replace(full, omega=0.95),
        "+ L_repr, ω = 0": dataclasses.replace(full, omega=0.0),
        "+ L_repr, ω = 0.95, all pixels": dataclasses.replace(full, omega=0.95, band=0),
    }


def shorten(config: TrainConfig, steps: int) -> TrainConfig:
    """The recipe in another number of steps, its warm-up no more than a tenth of them."""
    return dataclasses.replace(config, steps=steps, warmup=max(1, min(config.warmup, steps // 10)))


def measure(
    config: TrainConfig, clips: Clips, folder: Path, place: Place, davis: Path,
    sequences: list[str], size: int, save_every: float,
) -> dict[str, Any]:  # fmt: skip
    """Train one variant to its end, or go on with it, and score its averaged weights.

    ``config.steps`` of 0 scores the start. Returns the row's figures, which also stay in
    ``folder``/scores.json. Raises what the trainer and ``evaluate`` do.
    """
    from engine.commands.evaluate import evaluate, mean
    from engine.model import MobileVOS
    from engine.runtime.reference import ReferenceBackend
    from engine.segmenter import Segmenter
    from engine.train.loop import Trainer

    asked = {"steps": config.steps, "sequences": sequences, "size": size}
    trainer = Trainer(config, clips, folder, place)
    trainer.resume()
    kept = folder / "scores.json"
    if trainer.step == config.steps and kept.is_file():
        row: dict[str, Any] = json.loads(kept.read_text())
        if asked.items() <= row.items():
            return row
    trainer.run(save_every)
    trainer.network.load_state_dict(trainer.ema)
    model = trainer.network
    assert isinstance(model, MobileVOS)
    with Segmenter(ReferenceBackend(model), config.model, "", size=size) as segmenter:
        scores = evaluate(segmenter, davis, sequences, say=lambda _: None)
    log = folder / "log.jsonl"
    steps = [json.loads(x) for x in log.read_text().splitlines()] if config.steps else []
    late = steps[-max(1, len(steps) // 4) :]
    row = {
        **asked,
        **{name: mean(scores, name) for name in ("jf", "j", "f")},
        "objects": {f"{s.sequence}/{s.object}": s.jf for s in scores},
        "iou": sum(x["iou"] for x in late) / len(late) if late else None,
        "seconds": trainer.seconds / config.steps if config.steps else None,
        "starts_from": trainer.says,
    }
    write_atomic(kept, json.dumps(row, indent=1).encode())
    return row


def table(rows: dict[str, dict[str, Any]], config: TrainConfig) -> Iterator[str]:
    """The lines of a Markdown table; ``rows`` in the order in which they are to stand."""
    first = next(iter(rows.values()))
    teacher = config.teacher
    yield (
        f"`{config.model}`, started from: {first['starts_from']}; {config.steps} steps each, "
        f"seed {config.seed}, the same clips. Teacher: "
        f"{teacher.weights or teacher.model if teacher else 'none'}. Logits × "
        f"{config.distil.logits:g} at temperature {config.distil.temperature:g}, N·L_repr × "
        f"{config.distil.representation:g} on at most {config.distil.points} pixels within "
        f"{config.distil.band} of the boundary. Averaged weights, {', '.join(first['sequences'])} "
        f"at {first['size']}, `reference` backend."
    )
    yield ""
    yield "| variant | J&F | J | F | J&F over no distillation | IoU of training clips | s a step |"
    yield "|---|---|---|---|---|---|---|"
    base = rows.get("no distillation")
    for name, row in rows.items():
        gain = f"{row['jf'] - base['jf']:+.3f}" if base and name != BEFORE else "–"
        iou, seconds = (
            "–" if row[key] is None else f"{row[key]:{form}}"
            for key, form in (("iou", ".3f"), ("seconds", ".1f"))
        )
        scores = " | ".join(f"{row[key]:.3f}" for key in ("jf", "j", "f"))
        yield f"| {name} | {scores} | {gain} | {iou} | {seconds} |"
    yield ""
    yield (
        "One seed and few sequences: what it shows is the size of the effect at this budget, and "
        "differences of 0.01 are noise. The sequences were used to choose, so no figure here is "
        "one of a test. Training clips are scored at the crop's size, over the last quarter of the "
        "steps, with the weights of the step; they do not compare with J."
    )


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(prog="python -m bench.ablation", description=__doc__)
    p.add_argument("--config", default="noaspp", help="the recipe (default: %(default)s)")
    p.add_argument("--davis", type=Path, required=True, help="a DAVIS folder, 480p")
    p.add_argument("--stills", type=Path, required=True, help="folder of <set>/images and masks")
    p.add_argument("--steps", type=int, default=100, help="a variant (default: %(default)s)")
    p.add_argument("--only", nargs="+", type=int, metavar="N", help="these variants, from 0")
    p.add_argument("--start", metavar="FROM", help="start from another model, recipe or file")
    p.add_argument("--out", type=Path, required=True, help="a folder a variant, and ablation.md")
    p.add_argument(
        "--sequences", nargs="+", default=list(DEVELOPMENT), metavar="SEQ",
        help="measured and not trained on (default: the development split)",
    )  # fmt: skip
    p.add_argument("--size", type=int, default=480, help="short side when measured")
    p.add_argument(
        "--save-every", type=float, default=120.0, metavar="SECONDS",
        help="write a checkpoint this often (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    p.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    return p


def run(args: argparse.Namespace) -> None:
    """Train and measure the variants one after the other, and write the table after each."""
    try:
        import cv2
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtraError("training", str(error.name), "train") from error
    from engine.train.data import Clips
    from engine.train.distributed import place
    from engine.train.sources import load_davis, load_stills

    if args.config not in CONFIGS or CONFIGS[args.config].teacher is None:
        fit = [name for name, c in CONFIGS.items() if c.teacher and c.stage == "clips"]
        raise InputError(f"'{args.config}' cannot be ablated; choose one of: {', '.join(fit)}")
    config = shorten(CONFIGS[args.config], args.steps)
    if args.start:
        config = dataclasses.replace(config, start=args.start)
    chosen = list(variants(config.distil).items())
    wrong = [n for n in args.only or [] if not 0 <= n < len(chosen)]
    if wrong or args.steps < 1:
        raise InputError(f"--only takes 0 to {len(chosen) - 1}, --steps 1 or more")
    cv2.setNumThreads(1)
    if args.threads:
        torch.set_num_threads(args.threads)
    exclude = tuple({*args.sequences, *DEVELOPMENT})
    clips = Clips(load_davis([args.davis], exclude), load_stills(args.stills))
    make_folder(args.out)
    rows: dict[str, dict[str, Any]] = {}
    with place(args.device) as here:
        if here.size > 1:
            raise InputError("the ablation runs in one process; start it without torchrun")
        plan = [(n, *chosen[n]) for n in args.only or range(len(chosen))]
        plan.insert(0, (-1, BEFORE, Distillation()))
        for number, name, distil in plan:
            print(name, flush=True)
            variant = dataclasses.replace(
                config, distil=distil, steps=config.steps if number >= 0 else 0
            )
            folder = args.out / (f"variant-{number}" if number >= 0 else "start")
            rows[name] = measure(
                variant, clips, folder, here, args.davis, args.sequences, args.size, args.save_every
            )
            lines = "\n".join(table(rows, config)) + "\n"
            write_atomic(args.out / "ablation.md", lines.encode())
    print(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return errors.run(lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
