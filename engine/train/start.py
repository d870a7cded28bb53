"""What a network starts from: ImageNet, a shipped model, or the checkpoint of an earlier run."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from engine.errors import InputError, ModelError
from engine.model import MobileVOS, create, fuse
from engine.model.backbones import MobileNetV2
from engine.train import checkpoint
from engine.train.config import Teacher, TrainConfig
from engine.train.pretrained import load_with_mask_channels, mobilenetv2_imagenet
from engine.train.recipes import CONFIGS
from engine.train.widen import take_over_decoder
from engine.weights import weights_path

RUNS = Path.home() / ".cache" / "mobilevos"  # a folder a recipe, unless --out says otherwise


def begin(config: TrainConfig) -> tuple[MobileVOS, str]:
    """Make the network with the weights that it starts from, in evaluation mode.

    Returns it and what it was made of, in words. What nothing was taken over for is random: seed
    torch first. Raises InputError or ModelError for a start that does not fit.
    """
    model = create(config.model)
    if config.start:
        says = take_over(model, config)
    elif config.stage == "features":
        initialise(model)
        says = "random weights"
    elif config.pretrained and isinstance(model.encode_query.backbone, MobileNetV2):
        state = mobilenetv2_imagenet()
        model.encode_query.backbone.load_state_dict(state)
        load_with_mask_channels(model.encode_value.backbone, state)
        says = "backbones from ImageNet, the rest random"
    else:
        says = "random weights"
    return (fuse(model) if config.fused else model), says


def take_over(model: MobileVOS, config: TrainConfig) -> str:
    """Load what fits of ``config.start``, and the decoder; returns what came from where.

    Raises what :func:`begin` does.
    """
    state = read_state(config.start)
    heads = [
        (state[f"heads.{i}.weight"], state[f"heads.{i}.bias"])
        for i in range(3)
        if f"heads.{i}.weight" in state
    ]
    if heads:  # of stage "features": the network and the heads that it learnt with
        state = {
            k.removeprefix("student."): v for k, v in state.items() if k.startswith("student.")
        }
    if folded(state):
        if not config.fused:
            raise InputError(
                f"the weights of '{config.start}' have their batch norms folded; "
                "train with fused=True"
            )
        fuse(model)
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not fits:
        raise InputError(f"'{config.start}' has no tensor in common with {config.model}")
    model.load_state_dict(fits, strict=False)
    says = f"{len(fits)} of {len(own)} tensors from {config.start}"
    if config.decoder:
        if not heads or not config.fused:
            raise InputError(
                "a decoder is taken over only behind a start of stage 'features', "
                "and with fused=True"
            )
        take_over_decoder(fuse(model), load_teacher(Teacher(config.decoder)), heads)
        says += f", the decoder from {config.decoder}"
    return says


def folded(state: dict[str, Tensor]) -> bool:
    """Whether the batch norms of a network with these tensors are folded."""
    return not any(name.endswith("running_mean") for name in state)


def locate(source: str) -> Path:
    """The file that ``source`` names: a shipped model, a trained recipe, or a path.

    Raises InputError if it is not there.
    """
    if weights_path(source).is_file():
        return weights_path(source)
    if source in CONFIGS:
        path = RUNS / source / "checkpoint.pt"
        if not path.is_file():
            raise InputError(f"'{path}' is missing; train it first: --config {source}")
        return path
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(
            f"'{source}' to start from is no model with weights, no recipe and no file; "
            "check its name"
        )
    return path


def read_state(source: str) -> dict[str, Tensor]:
    """The weights that ``source`` names, fp32; of a checkpoint, the averaged ones.

    Raises InputError if there are none, ModelError if they are damaged.
    """
    path = locate(source)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return {k: v.float() for k, v in load_file(path).items()}
        except SafetensorError as error:
            raise ModelError(f"'{path}' is no weights file or is damaged ({error})") from error
    state = checkpoint.read(path)
    if "ema" not in state:
        raise ModelError(f"'{path}' is not a checkpoint of python -m engine.train")
    average: dict[str, Tensor] = state["ema"]
    return average


def load_teacher(teacher: Teacher) -> MobileVOS:
    """Make the teacher, frozen, batch norms folded, in evaluation mode.

    Raises InputError or ModelError if its weights are missing or of another network.
    """
    source = teacher.weights or teacher.model
    state = read_state(source)
    model = create(teacher.model)
    if folded(state):
        fuse(model)
    with checkpoint.damaged(locate(source)):
        model.load_state_dict(state)
    return fuse(model).eval().requires_grad_(False)


def initialise(model: MobileVOS) -> None:
    """Draw the weights before batch norms so that activations keep their variance backwards.

    Source: He et al., "Delving deep into rectifiers", ICCV 2015.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
