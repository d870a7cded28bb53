"""Training: data, the unrolled clip, the trainer's state, and runs that are killed."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.networks import randomised
from helpers.training import SMOKE
from PIL import Image

import engine.train.__main__ as command
from engine.confidence import LostWatch
from engine.errors import ModelError, OutputError
from engine.model import load
from engine.runtime.reference import ReferenceBackend
from engine.segmenter import Segmenter
from engine.train import loop
from engine.train.data import phase_at
from engine.train.loop import Trainer, rate_at
from engine.train.recipes import CONFIGS
from engine.train.unroll import unroll
from engine.weights import weights_path

# The unrolled clip


@pytest.mark.parametrize("objects", [1, 2])
def test_unroll_does_what_inference_does(clip, monkeypatch, objects):
    """Two clips in one batch, in fp32, against the frame loop on each of them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(LostWatch, "lost", lambda *_, **__: set())  # clips know no lost objects
    name = "mobilevos-mobilenetv2"
    model = load(name, weights_path(name))
    frames = np.stack([clip[0][0:5], clip[0][10:20:2]])[:, :, :176, ::2]
    labels = np.full(frames.shape[:4], 7, np.int64)  # only the first frame's may be looked at
    labels[:, 0] = clip[1][:176, ::2] > 0
    if objects == 2:
        labels[0, 0, 100:160, 10:50] = 2
        labels[1, 0, 20:90, 100:150] = 2
    with torch.no_grad():
        tensor = torch.tensor(frames).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        got = unroll(model, tensor, torch.tensor(labels), objects, supervised=3)
    assert len(got) == 3
    for b in range(2):
        segmenter = Segmenter(ReferenceBackend(model), name, "")
        segmenter.start(frames[b, 0], labels[b, 0].astype(np.uint8))
        for t in range(1, 5):
            segmenter.step(frames[b, t])
            if t >= 2:
                soft = segmenter.probabilities
                assert soft[1].std() > 0.05, "the object is there"
                np.testing.assert_allclose(got[t - 2].probabilities[b].numpy(), soft, atol=1e-3)


def test_frames_before_the_supervised_ones_have_no_gradient():
    model = randomised("mobilevos-mobilenetv2-noaspp")
    frames = torch.randn(1, 4, 3, 32, 32)
    labels = torch.zeros(1, 4, 32, 32, dtype=torch.int64)
    labels[:, 0, 8:24, 8:24] = 1
    encoded = []
    encode = model.encode_query.forward
    model.encode_query.forward = lambda x: encoded.append(encode(x)) or encoded[-1]
    (last,) = unroll(model, frames, labels, 1, supervised=1)
    assert last.probabilities.requires_grad
    assert [key.requires_grad for key, _ in encoded] == [True, False, True], (
        "two unsupervised frames are one batch"
    )


# The trainer


def test_phases_and_rates_over_a_run():
    for config in CONFIGS.values():
        phases = [phase_at(config, s) for s in range(config.steps)]
        assert set(phases) == set(config.phases)
        assert [config.phases.index(p) for p in phases] == sorted(map(config.phases.index, phases))
        rates = [rate_at(config, s) for s in range(config.steps)]
        assert rates[: config.warmup] == sorted(rates[: config.warmup])
        assert rates[config.warmup :] == sorted(rates[config.warmup :], reverse=True)
        assert max(rates) == 1
        assert 0.02 <= rates[-1] < 0.1 if config.decay else rates[-1] == 1


def test_one_step_freezes_trains_and_averages(clips, tmp_path):
    trainer = Trainer(SMOKE, clips, tmp_path)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    averaged = {k: v.clone() for k, v in trainer.ema.items()}
    figures = trainer.train_step()
    after = trainer.network.state_dict()
    frozen = ("encode_query.backbone.stem.", "encode_query.backbone.stages.0.",
              "encode_query.backbone.stages.1.")  # fmt: skip
    names = [n for n, _ in trainer.network.named_parameters()]
    for name, parameter in trainer.network.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    moved = {n for n in names if not torch.equal(before[n], after[n])}
    assert not any(n.startswith(frozen) for n in moved)
    # Behind a ReLU that is off everywhere a weight has no gradient: allow for a few.
    assert len(moved) > 0.95 * sum(not n.startswith(frozen) for n in names)
    for name, value in after.items():
        if name not in names:
            assert torch.equal(before[name], value), "batch-norm statistics stay"
    for name in moved:
        want = averaged[name] + (after[name] - averaged[name]) * 0.9  # at the first step
        torch.testing.assert_close(trainer.ema[name], want)
    assert all(np.isfinite(v) for v in figures.values()) and figures["step"] == 1
    assert figures["loss"] == pytest.approx(figures["cross_entropy"] + figures["dice"])


def test_ctrl_c_finishes_the_step_and_saves(clips, tmp_path, monkeypatch):
    trainer = Trainer(SMOKE, clips, tmp_path)
    step, before = Trainer.train_step, signal.getsignal(signal.SIGINT)

    def interrupted(self):
        if self.step == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(save_every=1e9)
    assert signal.getsignal(signal.SIGINT) is before
    again = Trainer(SMOKE, clips, tmp_path)
    assert again.resume() and again.step == 2
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_a_full_disk_keeps_the_checkpoint(clips, tmp_path, monkeypatch):
    trainer = Trainer(SMOKE, clips, tmp_path)
    trainer.save()
    old = trainer.checkpoint.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    trainer.step = 1
    with pytest.raises(OutputError, match="checkpoint.pt' .*No space left.*make room") as caught:
        trainer.save()
    assert "--resume" not in str(caught.value), "the trainer has no such option"
    assert trainer.checkpoint.read_bytes() == old
    assert list(tmp_path.iterdir()) == [trainer.checkpoint]


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "other", "keys"])
def test_a_damaged_checkpoint(clips, tmp_path, damage):
    trainer = Trainer(SMOKE, clips, tmp_path)
    trainer.save()
    if damage == "other":
        other = dataclasses.replace(SMOKE, model="mobilevos-resnet18")
        trainer = Trainer(other, clips, tmp_path)
    elif damage == "keys":
        torch.save({"step": 3}, trainer.checkpoint)
    else:
        whole = trainer.checkpoint.read_bytes()
        new = {"cut": whole[: len(whole) // 2], "noise": b"\x00\x93noise" * 99, "empty": b""}
        trainer.checkpoint.write_bytes(new[damage])
    with pytest.raises(ModelError, match=r"checkpoint.pt' (is|belongs).* another .* delete it"):
        trainer.resume()


def spoil(case: str, root: Path) -> None:
    davis, stills = root / "davis", root / "stills"
    if case == "no frame folder":
        (davis / "JPEGImages" / "480p").rename(davis / "elsewhere")
    elif case == "no sequences":
        for path in (davis / "JPEGImages" / "480p").glob("*/*"):
            path.unlink()
    elif case == "no mask":
        (davis / "Annotations" / "480p" / "ant" / "00002.png").unlink()
    elif case == "mask of another size":
        Image.new("L", (9, 9)).save(davis / "Annotations" / "480p" / "ant" / "00002.png")
    elif case == "damaged frame":
        (davis / "JPEGImages" / "480p" / "ant" / "00001.jpg").write_bytes(b"x")
    elif case == "no stills":
        (stills / "set" / "images").rename(stills / "elsewhere")
    elif case == "stills without objects":
        for path in stills.glob("set/masks/*"):
            Image.new("L", (100, 80)).save(path)
    elif case == "out is a file":
        (root / "out").touch()


@pytest.mark.parametrize(("case", "says"), [
    ("no frame folder", "no sequences with frames and masks"),
    ("no sequences", "has no images in it"),
    ("no mask", "00002.png' is missing"),
    ("mask of another size", "00002.png' is (9, 9), but its frame is (96, 144)"),
    ("damaged frame", "00001.jpg"),
    ("no stills", "no still images"),
    ("stills without objects", "no still images"),
    ("out is a file", "cannot write"),
])  # fmt: skip
def test_errors_are_one_line(data, tmp_path, capsys, case, says):
    for path in sorted(data.glob("**/*.*")):
        copy = tmp_path / path.relative_to(data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    spoil(case, tmp_path)
    options = ["--davis", tmp_path / "davis", "--stills", tmp_path / "stills", "--out",
               tmp_path / "out", "--config", "smoke"]  # fmt: skip
    assert command.main([str(o) for o in options]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and says in error


def test_an_unknown_config(capsys):
    assert command.main(["--davis", ".", "--stills", ".", "--config", "mobile"]) == 2
    assert "choose one of: campaign, mobilenetv2-first," in capsys.readouterr().err


# Kill and resume

DIES = """
import os, signal, sys
from pathlib import Path
from engine.train.__main__ import main
from engine.train.loop import Trainer
save = Trainer.save
def last_save(self):
    if self.step <= 3:
        save(self)
    elif self.step == 5:  # in the middle of writing; the log is two steps ahead
        (self.folder / ".checkpoint.pt.part").write_bytes(b"half a checkpoint")
        os.kill(os.getpid(), signal.SIGKILL)
Trainer.save = last_save
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_and_resumed_is_as_if_unbroken(data, tmp_path):
    def train(out, *how):
        options = ["--config", "smoke", "--davis", data / "davis", "--stills", data / "stills",
                   "--out", tmp_path / out, "--threads", 1, "--save-every", 0]  # fmt: skip
        return subprocess.run(
            [sys.executable, *how, *map(str, options)], cwd=ROOT, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    def state(out):
        return torch.load(tmp_path / out / "checkpoint.pt", weights_only=True)

    def log(out):
        return [json.loads(x) for x in (tmp_path / out / "log.jsonl").read_text().splitlines()]

    assert train("broken", "-c", DIES).returncode == -signal.SIGKILL
    assert state("broken")["step"] == 3 and len(log("broken")) == 5
    resumed = train("broken", "-m", "engine.train")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step 3 of 8" in resumed.stdout
    assert train("whole", "-m", "engine.train").returncode == 0

    broken, whole = state("broken"), state("whole")
    assert broken["step"] == whole["step"] == 8
    for part in ("model", "ema"):
        assert broken[part].keys() == whole[part].keys()
        for name, value in whole[part].items():
            assert torch.equal(broken[part][name], value), name
    moments = [state["optimizer"]["state"] for state in (broken, whole)]
    for i, moment in moments[1].items():
        assert all(torch.equal(moments[0][i][k], v) for k, v in moment.items())
    for rows in (broken_log := log("broken"), whole_log := log("whole")):
        assert [row["step"] for row in rows] == list(range(1, 9))
        for row in rows:
            del row["seconds"]
    assert broken_log == whole_log


def test_log_is_on_disk_after_every_step(clips, tmp_path, monkeypatch):
    """What a kill leaves behind ends with the last finished step."""
    seen = []
    monkeypatch.setattr(loop.Trainer, "save", lambda self: seen.append(
        (self.step, len((tmp_path / "log.jsonl").read_text().splitlines()))
    ))  # fmt: skip
    Trainer(dataclasses.replace(SMOKE, steps=2, warmup=1), clips, tmp_path).run(0.0)
    assert seen == [(1, 1), (2, 2), (2, 2)]
