"""What a network starts from: shipped weights, checkpoints, a wider or another network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers.networks import randomised, run

from engine.errors import InputError, ModelError
from engine.model import create, fuse, load
from engine.train import start
from engine.train.config import Teacher, TrainConfig
from engine.train.features import Imitation
from engine.train.recipes import CONFIGS
from engine.train.start import begin, load_teacher, locate, read_state
from engine.weights import available, find, graph_path, weights_path, write_sums

SHIPPED = "mobilevos-mobilenetv2"
PLAIN = TrainConfig(model=SHIPPED, phases=CONFIGS["smoke"].phases, steps=8)


def write(path: Path, model: torch.nn.Module) -> str:
    """A checkpoint as far as a start looks at it: the averaged weights."""
    torch.save({"ema": model.state_dict()}, path)
    return str(path)


def outputs(model: torch.nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(5)
    image, given = torch.randn(1, 3, 48, 64), (torch.rand(2, 48, 64) > 0.5).float()
    with torch.inference_mode():
        return list(run(model.eval(), image, given))


def same(a: torch.nn.Module, b: torch.nn.Module, tolerance: float = 1e-4) -> None:
    for x, y in zip(outputs(a), outputs(b), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def test_a_shipped_model_is_trained_on_with_its_batch_norms_folded():
    model, says = begin(dataclasses.replace(PLAIN, start=SHIPPED, fused=True))
    assert says == f"210 of 210 tensors from {SHIPPED}"
    whole = load(SHIPPED, weights_path(SHIPPED)).state_dict()
    assert whole.keys() == model.state_dict().keys()
    assert all(torch.equal(v, whole[k]) for k, v in model.state_dict().items())
    with pytest.raises(InputError, match="batch norms folded; train with fused=True"):
        begin(dataclasses.replace(PLAIN, start=SHIPPED))


@pytest.mark.parametrize("fused", [False, True])
def test_a_checkpoint_with_batch_norms(tmp_path, fused):
    other = randomised(SHIPPED)
    source = write(tmp_path / "c.pt", other)
    model, _ = begin(dataclasses.replace(PLAIN, start=source, fused=fused))
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()) != fused
    same(model, other)


def test_what_has_no_counterpart_keeps_its_own_start():
    config = dataclasses.replace(
        PLAIN, model="mobilevos-mobilenetv2-noaspp", start=SHIPPED, fused=True
    )
    torch.manual_seed(1)
    model, says = begin(config)
    assert says == f"198 of 198 tensors from {SHIPPED}", "all but ASPP's"
    torch.manual_seed(1)
    other, _ = begin(dataclasses.replace(config, model="mobilevos-resnet18"))
    torch.manual_seed(1)
    fresh = fuse(create("mobilevos-resnet18")).state_dict()
    shipped = read_state(SHIPPED)
    taken = 0
    for name, tensor in other.state_dict().items():
        fits = name in shipped and shipped[name].shape == tensor.shape
        taken += fits
        assert torch.equal(tensor, shipped[name] if fits else fresh[name]), name
    assert 0 < taken < len(fresh)
    assert "decode.context.project.0.weight" in shipped and model.config.aspp is False


@pytest.mark.parametrize(("source", "error", "says"), [
    ("mobilevos-resnet50", InputError, "no model with weights, no recipe and no file"),
    ("noaspp", InputError, "train it first: --config noaspp"),
    ("empty.pt", ModelError, "damaged"),
    ("foreign.pt", InputError, "no tensor in common"),
    ("keys.pt", ModelError, "not a checkpoint of python -m engine.train"),
    ("text.safetensors", ModelError, "no weights file or is damaged"),
])  # fmt: skip
def test_starts_that_do_not_fit(tmp_path, monkeypatch, source, error, says):
    monkeypatch.setattr(start, "RUNS", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    Path("empty.pt").touch()
    torch.save({"ema": {"a.running_mean": torch.zeros(3)}}, "foreign.pt")
    torch.save({"step": 3}, "keys.pt")
    Path("text.safetensors").write_text("hello")
    with pytest.raises(error, match=says):
        begin(dataclasses.replace(PLAIN, start=source, fused=True))


def test_a_recipe_names_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "RUNS", tmp_path)
    (tmp_path / "mobilenetv2-first").mkdir()
    write(tmp_path / "mobilenetv2-first" / "checkpoint.pt", create(SHIPPED))
    assert locate("mobilenetv2-first") == tmp_path / "mobilenetv2-first" / "checkpoint.pt"
    assert locate(SHIPPED) == weights_path(SHIPPED)


def test_resnet18_takes_over_the_decoder_through_its_heads(tmp_path):
    """Where the heads give exactly the teacher's features, the logits are the teacher's."""
    teacher = load_teacher(Teacher(SHIPPED))
    imitation = Imitation(create("mobilevos-resnet18"), teacher)
    path = write(tmp_path / "features.pt", imitation)
    config = dataclasses.replace(CONFIGS["resnet18"], start=path)
    model, says = begin(config)
    assert says.endswith(f"the decoder from {SHIPPED}")
    features, readout = student_features(imitation), torch.randn(1, 64, 64)
    heads = imitation.heads
    theirs = features._replace(f8=heads[1](features.f8), f4=heads[2](features.f4))
    with torch.inference_mode():
        ours, want = model.decode(readout, features), teacher.decode(readout, theirs)
    inner = (0, slice(10, -10), slice(10, -10))  # at its border a bias meets the padding
    torch.testing.assert_close(ours[inner], want[inner], rtol=1e-3, atol=1e-3)
    assert want[inner].shape == (12, 12)
    with pytest.raises(InputError, match="only behind a start of stage 'features'"):
        begin(dataclasses.replace(config, start=SHIPPED))


def student_features(imitation: Imitation):
    torch.manual_seed(3)
    with torch.no_grad():
        _, features = imitation.eval().student.encode_query(torch.randn(1, 3, 128, 128))
    return features


def test_a_teacher_of_another_network(tmp_path):
    path = write(tmp_path / "c.pt", create("mobilevos-resnet18"))
    with pytest.raises(ModelError, match="another network"):
        load_teacher(Teacher(SHIPPED, weights=path))
    teacher = load_teacher(Teacher("mobilevos-resnet18", weights=path))
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in teacher.modules())


@pytest.mark.parametrize("fused", [False, True])
def test_checkpoints_are_exported_folded_or_not(tmp_path, fused):
    from engine.export.files import load_average

    model = randomised("mobilevos-resnet18")
    write(tmp_path / "c.pt", fuse(model) if fused else model)
    same(load_average("mobilevos-resnet18", tmp_path / "c.pt"), model)


def test_a_model_is_offered_where_its_weights_are(tmp_path):
    with pytest.raises(ModelError, match="'mobilevos-resnet18' has no trained weights"):
        find("mobilevos-resnet18", tmp_path)
    for place in (weights_path, graph_path):
        place("mobilevos-resnet18", tmp_path).touch()
    write_sums(tmp_path)
    assert available(tmp_path) == ["mobilevos-resnet18"] and find("mobilevos-resnet18", tmp_path)
