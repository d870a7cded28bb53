"""Attack the command for a while: ``python tests/torture/run.py --minutes 60 --out torture.json``.

Three attacks take turns, each from one warm process whose forks do the work:

- *fuzz*: videos, images, masks, resume points and summaries with random damage; the command must
  end by itself with 0, 2 or 3 and no more than a few lines.
- *kill*: signals at random moments of runs in several variants, up to three a run, then
  ``--resume``: the masks must be those of an unbroken run, byte for byte.
- *soak*: steps, loads, abandoned loops and failed calls of a real model; memory, descriptors and
  threads must not grow.

What was found is printed and written as JSON; the exit code is 1 if anything was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import damage  # noqa: E402
from helpers.faults import in_child  # noqa: E402
from helpers.media import FakeSegmenter, make_mask, make_video, picture  # noqa: E402
from tqdm import tqdm  # noqa: E402

import engine.commands.loop  # noqa: E402
from engine.cli import main as command  # noqa: E402
from engine.segmenter import Segmenter  # noqa: E402

LIMIT = 30  # seconds that a run on damaged input may take
LINES = 6  # that it may print to stderr
MEMORY = 3 << 30  # bytes of address space beyond which it has asked for too much
IMAGES = {"png": {}, "jpg": {}, "bmp": {}, "webp": {}, "tif": {}, "ppm": {}}
VARIANTS = ([], ["--no-overlay"], ["--every", "2", "--start", "3"], ["--end", "25"])
_MAIN = """
import sys, time
sys.path[:0] = {path!r}
try:  # as engine/__main__.py
    import engine.commands.loop
    from engine.cli import main
    from engine.segmenter import Segmenter
    from helpers.media import FakeSegmenter
except KeyboardInterrupt:
    sys.exit(130)

class Slow(FakeSegmenter):
    def step(self, frame):
        time.sleep(0.01)
        return super().step(frame)

engine.commands.loop.RESUME_SECONDS = 0.05
Segmenter.load = lambda options: Slow()
sys.exit(main(sys.argv[1:]))
"""


class Attack:
    """What was tried, and what was found; ``random`` decides everything."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.tried: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.found: list[dict[str, Any]] = []
        self.figures: dict[str, Any] = {}
        self.most = float("inf")  # damaged inputs that are tried

    def report(self, kind: str, **what: Any) -> None:
        self.found.append({"kind": kind, **what})
        print(f"FOUND {kind}: {what}", flush=True)

    # Fuzz

    def samples(self) -> list[tuple[str, Path]]:
        """Sound inputs: (what it is, its path)."""
        folder = self.folder / "samples"
        folder.mkdir()
        made: list[tuple[str, Path]] = []
        for kind in damage.KINDS:
            made.append(("video", damage.make(folder / kind, kind, 20)))
        made.append(("video", make_video(folder / "v.flv", 20)))
        made.append(("video", make_video(folder / "v.h264", 20)))
        for suffix in IMAGES:
            path = folder / f"image.{suffix}"
            Image.fromarray(picture(0)).save(path)
            made.append(("image", path))
        ids = np.zeros((48, 64), np.uint8)
        ids[5:21, 8:24] = 1
        for suffix in ("png", "bmp", "gif", "tif", "webp"):
            path = folder / f"mask.{suffix}"
            Image.fromarray(ids).save(path, **({"lossless": True} if suffix == "webp" else {}))
            made.append(("mask", path))
        interrupted = folder / "interrupted"
        self._interrupt(folder / "h264.mp4", interrupted)
        made += [("resume", interrupted / name) for name in (".resume.npz", "summary.json")]
        made.append(("resume", interrupted / "masks" / "00003.png"))
        return made

    def _interrupt(self, video: Path, out: Path) -> None:
        step = FakeSegmenter.step

        def stop(seg: FakeSegmenter, frame: Any) -> Any:
            if seg.frames == 8:
                raise KeyboardInterrupt
            return step(seg, frame)

        FakeSegmenter.step = stop  # type: ignore[method-assign]
        mask = make_mask(self.folder / "large.png", damage.SIZE)
        assert command(["segment", str(video), "--mask", str(mask), "--out", str(out)]) == 130
        FakeSegmenter.step = step  # type: ignore[method-assign]

    def fuzz(self, until: float) -> None:
        samples = self.samples()
        good = make_mask(self.folder / "small.png")
        videos = [self.folder / "samples" / name for name in ("h264.mp4", "v.h264")]
        while time.monotonic() < until and self.tried["fuzz"] < self.most:
            what, source = self.random.choice(samples)
            work = self.folder / "work"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            seed = self.random.getrandbits(32)
            more: list[str] = []
            if what == "resume":
                shutil.copytree(source.parents[source.parent.name == "masks"], work / "out")
                target = work / "out" / source.relative_to(self.folder / "samples" / "interrupted")
                video, mask, more = videos[0], self.folder / "large.png", ["--resume"]
            else:
                target = work / source.name
                shutil.copy(source, target)
                large = what == "video" and not source.name.startswith("v.")
                mask = target if what == "mask" else self.folder / "large.png" if large else good
                video = {"mask": videos[1], "image": work, "video": target}[what]
            mutate(target, random.Random(seed))
            paths = [str(video), "--mask", str(mask), "--out", str(work / "out")]
            arguments = ["segment", *paths, *more]
            self.tried["fuzz"] += 1
            if why := self._run(arguments):
                kept = self.folder / f"found-{len(self.found)}{source.suffix}"
                shutil.copy(target, kept)
                self.report("fuzz", what=source.name, seed=seed, why=why, file=str(kept))

    def _run(self, arguments: list[str]) -> str:
        """Run the command in a fork; returns what is wrong about how it ended."""
        log = self.folder / "log"

        def work() -> int:
            with log.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            signal.alarm(LIMIT)
            code = command(arguments)
            sys.stderr.flush()
            return code

        code = in_child(work)
        told = log.read_text(errors="replace")
        errors = [line for line in told.splitlines() if line.startswith(("error", "warning"))]
        if code not in (0, 2, 3):
            return f"exit code {code}: {told[-300:]}"
        if "Traceback" in told or len(told.splitlines()) > LINES + 5:
            return f"output: {told[-300:]}"
        return f"no line: {told[-300:]}" if code and not errors else ""

    # Kill

    def kill(self, until: float) -> None:
        video = make_video(self.folder / "kill.mp4", 40)
        mask = make_mask(self.folder / "kill.png")
        whole: dict[int, dict[str, bytes]] = {}
        signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
        while time.monotonic() < until:
            k = self.random.randrange(len(VARIANTS))
            base = ["segment", str(video), "--mask", str(mask), *VARIANTS[k]]
            if k not in whole:
                whole[k] = self._kill_run([*base, "--out", str(self.folder / f"whole{k}")], None)[1]
            out = self.folder / "killed"
            shutil.rmtree(out, ignore_errors=True)
            history = []
            for _ in range(self.random.randint(1, 3)):
                number = self.random.choice(signals)
                after = self.random.choice((0.0, 0.3, 0.6)) + 0.8 * self.random.random()
                how = (number, after)
                code, _ = self._kill_run([*base, "--out", str(out), "--resume"], how)
                history.append((number.name, round(after, 3), code))
                self.tried["kill"] += 1
            code, made = self._kill_run([*base, "--out", str(out), "--resume"], None)
            left = [p.name for p in out.rglob(".*")]
            if code or made != whole[k] or left:
                self.report("kill", variant=VARIANTS[k], history=history, code=code, left=left)

    def _kill_run(
        self, arguments: list[str], how: tuple[int, float] | None
    ) -> tuple[int, dict[str, bytes]]:
        script = _MAIN.format(path=[str(ROOT), str(ROOT / "tests")])
        with subprocess.Popen(
            [sys.executable, "-c", script, *arguments], stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            if how is not None:
                time.sleep(how[1])
                process.send_signal(how[0])
            _, err = process.communicate(timeout=120)
        out = Path(arguments[arguments.index("--out") + 1])
        if "Traceback" in err and "engine" in err:  # not while Python itself was starting
            self.report("kill", arguments=arguments, how=how, err=err[-500:])
        masks = {p.name: p.read_bytes() for p in sorted((out / "masks").glob("*.png"))}
        return process.returncode, masks

    # Soak

    def soak(self, until: float) -> None:
        rng = np.random.default_rng(self.random.getrandbits(32))
        frames = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(8)]
        mask = np.zeros((48, 64), np.uint8)
        mask[10:30, 10:40] = 1
        before: dict[str, float] | None = None
        began, rounds = time.monotonic(), 0
        while time.monotonic() < until:
            with REAL("mobilevos-mobilenetv2", "cpu", size=48, threads=1) as seg:
                seg.start(frames[0], mask)
                for k in range(200):
                    seg.step(frames[k % 8], np.roll(mask, k, 0) * 2 if k % 50 == 9 else None)
                for k in range(5):
                    for _ in seg.segment(frames, mask):
                        if k:
                            break
            rounds += 1
            self.tried["soak"] += 240
            if time.monotonic() - began > 0.2 * (until - began) and before is None:
                before = usage()
        now = usage()
        self.figures["soak"] = {"after warm-up": before, "at the end": now, "rounds": rounds}
        if before is not None and rounds > 20:
            grown = {k: now[k] - before[k] for k in now}
            limits = {"MB": 10, "descriptors": 0, "threads": 0}
            if any(grown[k] > limits[k] for k in limits):
                self.report("soak", grown=grown)

    def run(self, name: str, seconds: float) -> None:
        began = time.monotonic()
        getattr(self, name)(began + seconds)
        self.seconds[name] += round(time.monotonic() - began, 1)


REAL: Callable[..., Any] = Segmenter.load


def use_fake() -> None:
    """Let the command follow nothing, with a resume point after every frame."""
    Segmenter.load = lambda options: FakeSegmenter()  # type: ignore[method-assign,assignment]
    engine.commands.loop.RESUME_SECONDS = 0.0


def usage() -> dict[str, float]:
    """Memory, open files and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "MB": pages * resource.getpagesize() / 1e6,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
    }


def mutate(path: Path, chance: random.Random) -> None:
    """Damage a file: flipped bits, other bytes, holes, cuts, repeated and swapped parts."""
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        if not content:
            break
        at = chance.randrange(min(len(content), chance.choice((64, 1024, len(content)))))
        size = chance.choice((1, 1, 4, 16, 256, 4096))
        how = chance.randrange(7)
        if how == 0:
            content[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            content[at : at + size] = chance.randbytes(size)
        elif how == 2:
            content[at : at + size] = bytes([chance.choice((0, 255))]) * size
        elif how == 3:
            del content[at : at + size]
        elif how == 4:
            content[at:at] = content[at : at + size]
        elif how == 5:
            other = chance.randrange(len(content))
            content[at : at + size] = content[other : other + size]
        elif chance.random() < 0.3:
            del content[at:]
    path.write_bytes(content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", choices=("fuzz", "kill", "soak"))
    parser.add_argument("--most", type=int, help="damaged inputs after which the fuzz stops")
    parser.add_argument("--out", type=Path, help="write what was tried and found as JSON")
    options = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    use_fake()
    tqdm.monitor_interval = 0  # no thread beside the one that forks
    attack = Attack(folder, seed)
    attack.most = options.most or float("inf")
    shares = {"fuzz": 0.6, "kill": 0.25, "soak": 0.15}
    for name, share in shares.items():
        if options.only in (None, name):
            attack.run(name, 60 * options.minutes * (1 if options.only else share))
    rates = {n: round(attack.tried[n] / s, 2) for n, s in attack.seconds.items() if s}
    told = {
        "seed": seed,
        "tried": dict(attack.tried),
        "seconds": dict(attack.seconds),
        "a second": rates,
        "figures": attack.figures,
        "found": attack.found,
    }
    print(json.dumps({k: v for k, v in told.items() if k != "found"}, indent=1))
    print(f"{len(attack.found)} found; files are in {folder}" if attack.found else "nothing found")
    if options.out:
        options.out.write_text(json.dumps(told, indent=1) + "\n")
    if not attack.found:
        shutil.rmtree(folder)
    return int(bool(attack.found))


if __name__ == "__main__":
    raise SystemExit(main())
