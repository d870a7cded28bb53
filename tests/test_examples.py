"""What a newcomer pastes runs: the README's Python, and each program in examples/."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

import engine
from engine import VideoWriter
from engine.data.demo import CLIP, MASK


def run(folder: Path, *arguments: str) -> str:
    """Run Python in ``folder`` as a newcomer would, and return what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def pictures(video: Path) -> list[np.ndarray]:
    with av.open(str(video)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def red(picture: np.ndarray) -> float:
    """The share of the picture that is tinted in the colour of object 1."""
    r, g, b = picture.astype(int).transpose(2, 0, 1)
    return float((r - np.maximum(g, b) > 60).mean())


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    """Six frames of the demo's clip at 320×180 and their first mask."""
    video, mask = tmp_path / "small.mp4", tmp_path / "small.png"
    source = engine.open_source(CLIP)
    with VideoWriter(video, (180, 320), source.fps) as writer:
        for frame in source.frames(end=6):
            writer.write(np.asarray(Image.fromarray(frame.image).resize((320, 180))), frame.time)
    Image.open(MASK).resize((320, 180), Image.Resampling.NEAREST).save(mask)
    return video, mask


@pytest.mark.slow
def test_the_readmes_python_runs_when_pasted(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    told = run(tmp_path, "-c", block)
    assert told.startswith("(1,) () Stats(frames=90, ")
    shown = pictures(tmp_path / "out.mp4")
    assert len(shown) == 90 and shown[0].shape == (720, 1280, 3)
    assert all(0.05 < red(picture) < 0.2 for picture in shown)


def test_file(small, tmp_path):
    video, mask = small
    told = run(tmp_path, str(ROOT / "examples/file.py"), str(video), str(mask), "out.mp4")
    assert told.startswith("out.mp4: 6 frames at ")
    assert len(pictures(tmp_path / "out.mp4")) == 6


def test_webcam(small, tmp_path):
    """A file in the camera's place."""
    told = run(tmp_path, str(ROOT / "examples/webcam.py"), str(small[0]), "0.1")
    assert told.endswith("\nwebcam.mp4: 4 frames, 0 left out\n")
    assert len(pictures(tmp_path / "webcam.mp4")) == 4


@pytest.mark.slow
def test_add_and_remove(tmp_path):
    told = run(tmp_path, str(ROOT / "examples/add_and_remove.py"))
    assert told.splitlines() == [
        "frame 0: following (1,)", "frame 8: following (1, 4)", "frame 16: following (4,)"
    ]  # fmt: skip
    shown = pictures(tmp_path / "add_and_remove.mp4")
    assert len(shown) == 24
    assert red(shown[15]) > 0.05 > red(shown[16]), "the rabbit is no longer followed"


def test_every_example_has_a_test():
    tested = Path(__file__).read_text() + (ROOT / "CMakeLists.txt").read_text()
    examples = [p.name for p in (ROOT / "examples").iterdir() if p.suffix in (".py", ".cpp")]
    assert len(examples) == 4
    assert not [name for name in examples if f"examples/{name}" not in tested]


def test_links_between_the_pages_lead_somewhere():
    found = 0
    for page in (p for p in ROOT.rglob("*.md") if not p.relative_to(ROOT).parts[0].startswith(".")):
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in link:
                found += 1
                assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"
    assert found > 30


def test_all_public_names_are_there():
    names = {name: getattr(engine, name) for name in engine.__all__}
    assert all(value.__module__.startswith("engine.") for value in names.values())
    errors = {n for n in vars(engine.errors) if n.endswith("Error")}
    assert errors <= names.keys(), "every error that the engine raises is public"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = engine.Nothing
