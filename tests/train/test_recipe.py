"""What makes a recipe one that anyone can repeat: options, resuming, precision, processes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.training import SMOKE, doubled, gradients, loaded

import engine.train.__main__ as command
from engine.errors import BackendError, InputError, ModelError
from engine.model import load
from engine.train import features, plot, start
from engine.train.config import Phase, Teacher
from engine.train.data import Batch
from engine.train.distributed import Place, place
from engine.train.features import Imitation, unexplained
from engine.train.loop import Trainer
from engine.train.recipes import CONFIGS
from engine.train.sources import load_davis
from engine.weights import weights_path

FEATURES = dataclasses.replace(
    CONFIGS["resnet18-features"],
    steps=3,
    warmup=1,
    phases=(Phase(1.0, 1, 1, static=0.5, gap=1, pairs=0.5, size=(64, 96), batch=3),),
)


# Recipes and options


@pytest.mark.parametrize("name", CONFIGS)
def test_every_recipe_can_be_trained(name):
    """What it starts from and who teaches it exist, or are recipes themselves."""
    config = CONFIGS[name]
    for source in (config.start, config.decoder, config.teacher and config.teacher.model):
        assert not source or source in CONFIGS or weights_path(source).is_file()
    assert config.fused or not config.start
    assert config.phases[-1].until == 1
    assert all(side % 16 == 0 for p in config.phases for side in p.size)
    assert all(1 <= p.supervised <= max(1, p.frames - 1) for p in config.phases)
    assert json.dumps(dataclasses.asdict(config))


def test_a_misspelt_exclusion_is_an_error(data):
    with pytest.raises(InputError, match="no sequence 'buss' to exclude; there are: ant, bus, cat"):
        load_davis([data / "davis"], ("cat", "buss"))


@pytest.fixture
def options(data, tmp_path) -> list[str]:
    folders = {"--davis": data / "davis", "--stills": data / "stills", "--out": tmp_path / "out"}
    return ["--config", "smoke", "--steps", "1", *(str(x) for kv in folders.items() for x in kv)]


def test_a_run_says_what_it_is(options, tmp_path, capsys):
    assert command.main([*options, "--exclude", "ant"]) == 0
    said = capsys.readouterr().out
    assert "2 videos, 2 still images" in said and "start: random weights" in said
    assert "warning: bus of the development split are trained on" in said
    about = json.loads((tmp_path / "out" / "run.json").read_text())
    assert about["starts_from"] == "random weights" and about["device"] == "cpu"
    assert about["precision"] == "bfloat16" and about["processes"] == 1
    assert about["config"]["steps"] == 1 and about["config"]["distil"]["omega"] == 0.95


@pytest.mark.parametrize(("more", "says"), [
    (["--exclude", "buss"], "no sequence 'buss' to exclude"),
    (["--start", "nowhere.pt"], "'nowhere.pt' to start from is no model with weights"),
    (["--teacher", "x.pt"], "'smoke' has no teacher"),
])  # fmt: skip
def test_options_that_cannot_be(options, capsys, more, says):
    assert command.main([*options, *more]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and says in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(options, capsys):
    assert command.main([*options, "--device", "cuda"]) == 2
    assert "--device cuda needs an NVIDIA GPU" in capsys.readouterr().err
    with pytest.raises(BackendError), place("cuda"):
        pass


# Resuming


def test_another_configuration_is_refused_and_more_steps_are_announced(clips, tmp_path):
    trainer = Trainer(SMOKE, clips, tmp_path)
    trainer.step = 3
    trainer.save()
    longer = Trainer(dataclasses.replace(SMOKE, steps=20), clips, tmp_path)
    assert longer.resume() == ["resumed at step 3 of 20", "steps was 8, now 20"]
    phases = (dataclasses.replace(SMOKE.phases[0], gap=9), SMOKE.phases[1])
    for change in ({"lr_new": 0.1}, {"phases": phases}, {"teacher": Teacher("x")}, {"seed": 5}):
        other = Trainer(SMOKE, clips, tmp_path)
        other.config = dataclasses.replace(SMOKE, steps=20, **change)
        (name,) = change
        with pytest.raises(ModelError, match=f"another configuration: {name} was .*, now .*--out"):
            other.resume()
        assert other.step == 0


@pytest.mark.slow
def test_a_run_with_a_teacher_goes_on_as_if_unbroken(clips, tmp_path):
    """Clips, errors in the masks and sampled pixels are those of the step, not of the process."""
    config = dataclasses.replace(doubled(1), steps=4)
    whole = Trainer(config, clips, tmp_path / "whole", Place(precision=torch.bfloat16))
    rows = [whole.train_step() for _ in range(4)]
    for first in (0, 2):
        part = Trainer(config, clips, tmp_path / "part", Place(precision=torch.bfloat16))
        part.resume()
        assert part.step == first
        assert [part.train_step()["loss"] for _ in range(2)] == [
            row["loss"] for row in rows[first : first + 2]
        ]
        part.folder.mkdir(exist_ok=True)
        part.save()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(part.network.state_dict()[name], value), name
        assert torch.equal(part.ema[name], whole.ema[name]), name


# Precision


def test_fp16_scales_the_loss_and_a_checkpoint_remembers_how(clips, tmp_path):
    half = Place(precision=torch.float16)
    phase = dataclasses.replace(SMOKE.phases[0], frames=2, supervised=1, until=1.0, batch=1)
    config = dataclasses.replace(SMOKE, phases=(phase,))
    trainer = Trainer(config, clips, tmp_path, half)
    scale = trainer.scaler.get_scale()
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    row = trainer.train_step()
    assert scale > 1 and np.isfinite(row["loss"])
    if trainer.scaler.get_scale() < scale:  # the first scale overflows: that step is left out
        assert all(torch.equal(v, before[k]) for k, v in trainer.network.state_dict().items())
    trainer.scaler.update(64.0)
    assert np.isfinite(trainer.train_step()["norm"]), "the norm is that of the unscaled gradient"
    trainer.save()
    again = Trainer(config, clips, tmp_path, half)
    again.resume()
    assert again.scaler.get_scale() == trainer.scaler.get_scale()
    assert trainer.scaler.state_dict() == again.scaler.state_dict() != {}


def test_losses_are_computed_in_fp32(clips, tmp_path, monkeypatch):
    from engine.train import follow

    seen = []
    dice = follow.dice
    monkeypatch.setattr(follow, "dice", lambda p, y: seen.append(
        (p.dtype, torch.is_autocast_enabled("cpu"))) or dice(p, y)
    )  # fmt: skip
    Trainer(SMOKE, clips, tmp_path, Place(precision=torch.bfloat16)).train_step()
    assert set(seen) == {(torch.float32, False)}


# Several processes


def test_processes_share_one_large_batch(clips):
    phase = dataclasses.replace(SMOKE.phases[0], batch=4)
    whole = clips.batch(np.random.default_rng(1), phase, 0.3)
    phase = dataclasses.replace(phase, batch=2)
    parts = [clips.batch(np.random.default_rng(1), phase, 0.3, rank, 2) for rank in range(2)]
    for name in ("frames", "labels", "seeds"):
        joined = np.concatenate([getattr(p, name) for p in parts])
        np.testing.assert_array_equal(getattr(whole, name), joined)
    assert whole.objects == parts[0].objects == parts[1].objects


ONE_OF_TWO = """
import dataclasses, sys, torch
from pathlib import Path
from helpers.training import gradients, loaded
from engine.train.distributed import place
torch.set_num_threads(1)
root, out = map(Path, sys.argv[1:])
with place("cpu", full=True) as here:
    assert here.size == 2
    torch.save(gradients(loaded(root), out, here, batch=1), out / f"{here.rank}.pt")
"""


def torchrun(*arguments: object) -> subprocess.CompletedProcess:
    """Two processes on this machine; the port is any that is free."""
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *arguments]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, *map(str, run)], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_with_twice_the_batch(data, tmp_path):
    (tmp_path / "script.py").write_text(ONE_OF_TWO)
    done = torchrun(tmp_path / "script.py", data, tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    one = gradients(loaded(data), tmp_path, Place(), batch=2)
    assert first.keys() == second.keys() == one.keys()
    assert first["loss"] != second["loss"], "each has clips of its own"
    torch.testing.assert_close((first.pop("loss") + second.pop("loss")) / 2, one.pop("loss"))
    for name, gradient in one.items():
        assert torch.equal(first[name], second[name]), name
        scale = gradient.abs().max().item()
        torch.testing.assert_close(first[name], gradient, rtol=1e-3, atol=1e-3 * scale + 1e-7)


@pytest.mark.slow
def test_a_run_of_two_processes(options, tmp_path):
    """One log, one checkpoint; it goes on in a single process as well."""
    done = torchrun("-m", "engine.train", *options, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("start: random weights") == 1
    out = tmp_path / "out"
    assert json.loads((out / "run.json").read_text())["processes"] == 2
    assert len((out / "log.jsonl").read_text().splitlines()) == 1
    assert command.main([*options, "--steps", "2"]) == 0
    assert [json.loads(x)["step"] for x in (out / "log.jsonl").read_text().splitlines()] == [1, 2]


# The features of another network


def test_unexplained_variance(rng):
    teacher = torch.from_numpy(rng.standard_normal((2, 3, 4, 5)))
    constant = teacher.mean((0, 2, 3), keepdim=True).expand_as(teacher)
    assert unexplained(teacher, teacher, (0, 2, 3)).item() == 0
    assert unexplained(constant, teacher, (0, 2, 3)).item() == pytest.approx(1, rel=1e-5)
    assert unexplained(2 * teacher - constant, teacher, (0, 2, 3)).item() == pytest.approx(1)


def test_a_copy_of_the_teacher_has_nothing_left_to_learn():
    name = "mobilevos-mobilenetv2"
    task = Imitation(load(name, weights_path(name)), load(name, weights_path(name)))
    for head in task.heads:
        torch.nn.init.dirac_(head.weight)
        torch.nn.init.zeros_(head.bias)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 1, 64, 64, 3), np.uint8)
    labels = np.zeros((2, 1, 64, 64), np.uint8)
    labels[:, :, 16:40, 16:40], labels[:, :, 44:60, 8:40] = 1, 2
    loss, parts = task(Batch(frames, labels, labels, 2, np.array([0, 1])), 1)
    assert set(parts) == set(features.WEIGHTS)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        task.student.encode_query.compression.weight *= 1.5
    _, parts = task(Batch(frames, labels, labels, 2, np.array([0, 1])), 1)
    assert parts["compressed"] > 0.01 and parts["key"] < 1e-5


def test_a_stage_of_features_and_the_run_that_starts_from_it(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(start, "RUNS", tmp_path)
    folder = tmp_path / "resnet18-features"
    trainer = Trainer(FEATURES, clips, folder)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.run(save_every=1e9)
    after = trainer.network.state_dict()
    norm = "student.encode_query.backbone.stem.1.running_mean"
    assert not torch.equal(before[norm], after[norm]), "batch norms learn here"
    moved = {k.split(".")[1] for k, v in after.items() if not torch.equal(before[k], v)}
    assert moved == {"encode_query", "encode_value", "0", "1", "2"}, "all but the decoder"
    row = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    assert set(features.WEIGHTS) < set(row) and row["step"] == 3
    assert plot.main([str(folder / "log.jsonl"), "--out", str(tmp_path / "curves.png")]) == 0
    again = Trainer(FEATURES, clips, folder)
    assert again.resume() == ["resumed at step 3 of 3"]
    assert all(torch.equal(v, after[k]) for k, v in again.network.state_dict().items())

    follower = dataclasses.replace(CONFIGS["resnet18"], phases=SMOKE.phases, steps=8, warmup=2)
    student = Trainer(follower, clips, tmp_path / "resnet18")
    assert student.says == (
        "258 of 258 tensors from resnet18-features, the decoder from mobilevos-mobilenetv2"
    )
    row = student.train_step()
    assert row["logits"] > 0 and row["representation"] > 0 and np.isfinite(row["loss"])
