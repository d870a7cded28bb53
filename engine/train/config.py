"""Training configuration: frozen dataclasses. The named recipes are in recipes.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DEVELOPMENT = ("bus", "dance-jump", "lucia", "motorbike", "rhino", "soccerball")
# A quarter of the other DAVIS sequences, not trained on until every choice is made.
HELD_OUT = ("bmx-bumps", "drift-turn", "hockey", "kite-walk", "mallard-fly", "swing")


@dataclass(frozen=True)
class Phase:
    """One part of a curriculum.

    ``until``: the fraction of all steps at which the phase ends. ``frames``: frames a clip;
    ``supervised``: how many of the last ones have a loss and a gradient, the ones before only roll
    the memory on. ``static``: share of clips made from one still image. ``gap``: the largest step
    between neighbouring video frames. ``pairs``: share of batches with two objects a clip.
    ``size``: height and width of the crop in pixels, multiples of 16. ``batch``: clips a step, and
    a process where there are several. ``composed``: share of clips made of a background and
    cut-outs that move on their own. ``zoom``: share of walks in which the object comes nearer or
    goes away, up to threefold. ``thin``, ``haze``: shares of clips behind thin occluders, and
    behind a half transparent cloud.
    """

    until: float
    frames: int
    supervised: int
    static: float
    gap: int
    pairs: float
    size: tuple[int, int] = (224, 384)
    batch: int = 4
    composed: float = 0.0
    zoom: float = 0.0
    thin: float = 0.0
    haze: float = 0.0


@dataclass(frozen=True)
class Teacher:
    """A trained, frozen network to learn from.

    ``model``: one of the networks. ``weights``: where they are, as ``TrainConfig.start``; empty:
    those shipped with the package. ``every``: every how many frames one is kept in its memory,
    all of which it reads, beside the first and the last; 0: only these two.
    """

    model: str
    weights: str = ""
    every: int = 0


@dataclass(frozen=True)
class Distillation:
    """What is learnt from the teacher besides the masks; a weight of 0 is off and costs nothing.

    ``logits``: weight of the divergence from the teacher's mask, at ``temperature``.
    ``representation``: weight of N · L_repr, in bits, whose target is ``omega`` parts teacher and
    1 − ``omega`` parts labels. Its N pixels, at most ``points`` an object, lie no further than
    ``band`` pixels of the stride-4 grid from the object's boundary; a band of 0: anywhere.
    """

    logits: float = 0.0
    temperature: float = 1.0
    representation: float = 0.0
    omega: float = 0.95
    band: int = 4
    points: int = 512


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run. Rates are AdamW's, at the top of the cosine.

    ``stage``: ``"clips"`` learns to follow objects; ``"features"`` learns the teacher's features on
    single frames, the first stage of a network without ImageNet weights.
    ``start``: a shipped model, a recipe that was trained, or a ``.pt`` or ``.safetensors`` file:
    its tensors of equal name and shape are taken over. ``decoder``: a shipped model whose decoder
    is taken over as well, widened, through what a start of stage ``"features"`` has learnt.
    ``every``: the memory of the network that is trained, as the teacher's.
    ``fused``: train the network as it is shipped, batch norms folded into the convolutions;
    otherwise their statistics stay as they are, for a few clips are too few to estimate them.
    """

    model: str
    phases: tuple[Phase, ...]
    steps: int
    stage: Literal["clips", "features"] = "clips"
    start: str = ""
    decoder: str = ""
    every: int = 0
    fused: bool = False
    pretrained: bool = True  # without a ``start``: the backbones' ImageNet weights
    teacher: Teacher | None = None
    distil: Distillation = field(default_factory=Distillation)
    seed: int = 0
    lr_query: float = 5e-5  # the query encoder's backbone
    lr_value: float = 2e-4  # the value encoder's backbone
    lr_new: float = 5e-4  # the rest
    warmup: int = 100
    decay: float = 1.0  # share of the steps, the last ones, in which the rate falls
    weight_decay: float = 0.01
    clip: float = 5.0
    ema: float = 0.998
    hard: float = 0.25  # share of the pixels that the cross-entropy keeps, the hardest
    occluder: float = 0.3  # share of one-object clips over which something untracked passes
    corrupt: float = 0.0  # share of the remembered masks that get an error, see corrupt.py
    frozen: int = 3  # first parts of the query encoder that stay: its stem, then its stages
