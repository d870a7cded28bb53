"""A disk that fails at any call, fills, or loses its power; a process killed at any call.

The end is always the same: one line, nothing half-written, and --resume gives the unbroken result.
"""

from __future__ import annotations

import errno
import json
import os
import sys

import pytest
from helpers.faults import KILLED, Disk, in_child, raising
from helpers.media import FakeSegmenter, make_mask, make_video

import engine.commands.loop
from engine.cli import main
from engine.segmenter import Segmenter

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="forks")]

FRAMES = 5
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.ESTALE)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    return make_video(folder / "v.mp4", FRAMES), make_mask(folder / "m.png"), folder


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """A resume point after every frame, so that every kind of call comes often."""
    monkeypatch.setattr(Segmenter, "load", lambda options: FakeSegmenter())
    monkeypatch.setattr(engine.commands.loop, "RESUME_SECONDS", 0.0)


def segment(files, out, *more):
    return main(["segment", str(files[0]), "--mask", str(files[1]), "--out", str(out), *more])


def content(out):
    """What a run leaves, but for the summary, which tells times."""
    found = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert json.loads(found.pop("summary.json"))["status"] == "complete"
    return found


@pytest.fixture(scope="module")
def unbroken(files):
    """What an unbroken run leaves, and the calls that it makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Segmenter, "load", lambda options: FakeSegmenter())
        patch.setattr(engine.commands.loop, "RESUME_SECONDS", 0.0)
        out = files[2] / "unbroken"
        with Disk(out).plugged_in() as disk:
            assert segment(files, out) == 0
    assert {"open", "write", "replace", "fsync", "mkdir", "unlink"} <= set(disk.calls)
    return content(out), len(disk.calls)


def resumed(files, out, unbroken, capsys):
    """Resume on a sound disk; what was made must be as if nothing had happened."""
    code = segment(files, out, "--resume")
    assert code == 0, capsys.readouterr().err
    assert content(out) == unbroken[0]


def test_an_error_of_the_disk_at_every_call(files, tmp_path, unbroken, capsys):
    for at in range(1, unbroken[1] + 1):
        out = tmp_path / str(at)
        with Disk(out, at, raising(ERRORS[at % len(ERRORS)])).plugged_in() as disk:
            code = segment(files, out)
        err = capsys.readouterr().err
        where = f"call {at}, {disk.calls[at - 1]}: {err}"
        assert code in (0, 2) and "Traceback" not in err, where
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (code == 2), where
        assert not list(out.rglob("*.part")), where
        resumed(files, out, unbroken, capsys)


@pytest.mark.parametrize("how", ["killed", "power"])
def test_the_end_of_the_process_or_of_the_power_at_every_call(
    files, tmp_path, unbroken, capsys, how
):
    for at in range(1, unbroken[1] + 1, 2):
        out = tmp_path / str(at)
        disk = Disk(out, at)
        disk.fail = disk.cut_power if how == "power" else lambda: os._exit(KILLED)

        def work(disk=disk, out=out):
            with disk.plugged_in():
                return segment(files, out)

        assert in_child(work) == KILLED
        resumed(files, out, unbroken, capsys)


@pytest.mark.parametrize("share", [0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99])
def test_a_full_disk(files, tmp_path, unbroken, capsys, share):
    out = tmp_path / "out"
    room = share * sum(map(len, unbroken[0].values()))
    with Disk(out, room=room).plugged_in():
        assert segment(files, out) == 2
    err = capsys.readouterr().err
    assert "disk is full" in err and "--resume" in err and "Traceback" not in err
    assert not list(out.rglob("*.part"))
    resumed(files, out, unbroken, capsys)
