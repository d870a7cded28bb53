"""What is compared: networks × backends × memory policies × sizes × objects, and the clip."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.data.demo import CLIP, MASK
from engine.errors import InputError, MissingExtraError, ModelError
from engine.geometry import Geometry
from engine.media.masks import load_ids, resize_ids
from engine.media.open import open_source
from engine.memory import POLICIES
from engine.runtime import status
from engine.weights import FOLDER, MODELS, available, int8_path

U8 = NDArray[np.uint8]
RIVAL = "rival"
#: Made here from the reference; both compile for long, so they run only when asked for by name.
COMPILED = ("torch-compile", "torch-tensorrt")
BACKENDS = ("reference", *COMPILED, "cpu", "onnx-cuda", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Case:
    """One subject of the comparison.

    model: a network's name, or a rival's. backend: one of :data:`BACKENDS`, any other that the
    engine has, or ``rival``. memory: ``finite`` or ``infinite``; a rival's is its ``own``.
    checkout, checkpoint: a rival's folder and weights file ("" for random weights).
    """

    model: str
    backend: str
    memory: str
    objects: int = 1
    size: int = 240
    weights: str = str(FOLDER)
    random: bool = False
    checkout: str = ""
    checkpoint: str = ""

    @property
    def key(self) -> dict[str, str | int]:
        """What tells this case apart in the rows of a run."""
        names = ("model", "backend", "memory", "objects", "size")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        return f"{self.model} {self.backend} {self.memory} {self.objects}×{self.size}p"


def expand(
    models: Sequence[str],
    backends: Sequence[str],
    memories: Sequence[str],
    objects: Sequence[int],
    sizes: Sequence[int],
    random_weights: Path | None = None,
    rivals: Sequence[Case] = (),
) -> Iterator[Case]:
    """All combinations, those that are compared with each other side by side.

    ``random_weights``: the folder with made-up weights for networks that have no trained ones.
    Raises InputError or ModelError for a name that does not exist.
    """
    for model in models:
        if model not in MODELS:
            raise ModelError(f"unknown model '{model}'; choose among: {', '.join(MODELS)}")
    known = {*BACKENDS, *status()}
    for backend in backends:
        if backend not in known:
            raise InputError(f"unknown backend '{backend}'; choose among: {', '.join(known)}")
    for memory in memories:
        if memory not in POLICIES:
            raise InputError(f"unknown memory '{memory}'; choose among: {', '.join(POLICIES)}")
    for size, count in itertools.product(sizes, objects):
        for model, backend, memory in itertools.product(models, backends, memories):
            made_up = random_weights is not None and model not in available()
            folder = random_weights if made_up and random_weights else FOLDER
            yield Case(model, backend, memory, count, size, str(folder), made_up)
        for rival in rivals:
            yield replace(rival, objects=count, size=size)


def why_not(case: Case) -> str:
    """Why a case cannot run on this machine; "" if it can."""
    if case.backend == RIVAL:
        return "" if _cuda_or_cpu_torch() else status()["reference"]
    if case.model not in available(Path(case.weights)):
        return "no weights; --random-weights measures its speed without them"
    if case.backend in COMPILED:
        if status()["reference"]:
            return status()["reference"]
        return _no_torch_tensorrt() if case.backend == "torch-tensorrt" else ""
    if case.backend == "cpu-int8" and not int8_path(case.model, Path(case.weights)).is_file():
        command = "python -m engine.export.quantize"
        return status()["cpu-int8"] or f"no int8 graph of this network; {command}"
    return status().get(case.backend, "this version has no such backend")


def _cuda_or_cpu_torch() -> bool:
    import importlib.util

    return importlib.util.find_spec("torch") is not None


def _no_torch_tensorrt() -> str:
    import importlib.util

    if importlib.util.find_spec("torch_tensorrt") is None:
        return "torch-tensorrt is not installed"
    import torch

    return "" if torch.cuda.is_available() else "no NVIDIA GPU"


def make_random_weights(folder: Path) -> None:
    """Export every network without trained weights to ``folder``, with random ones (seed 0).

    Good for timing only. Needs the extra ``build``; made anew every time, as the graph may have
    changed.
    """
    try:
        import torch

        from engine.export.files import export
        from engine.model import create
    except ModuleNotFoundError as error:
        raise MissingExtraError("--random-weights", str(error.name), "build") from error

    for model in MODELS:
        if model not in available():
            torch.manual_seed(0)
            export(create(model), model, folder)


def demo_clip(frames: int, size: int, objects: int) -> tuple[U8, U8]:
    """``frames`` frames of the demo [T, h, w, 3] at short side ``size``, and the first's mask.

    Shrunk beforehand, so that no resizing is in the times, to even sides, as video files have
    them. Several objects: the demo's one object
    cut into vertical strips of equal area.
    """
    source = open_source(CLIP)
    try:
        h, w = (n - n % 2 for n in Geometry.fit(*source.size, size).network)
        images = [
            np.asarray(Image.fromarray(f.image).resize((w, h), Image.Resampling.BOX))
            for f in source.frames(end=frames)
        ]
    finally:
        source.close()
    return np.stack(images), strips(resize_ids(load_ids(MASK), (h, w)), objects)


def strips(mask: U8, objects: int) -> U8:
    """Cut the foreground of ``mask`` [H, W] into ids 1…objects, from left to right.

    Raises InputError if it has fewer columns than ``objects``.
    """
    foreground = mask > 0
    share = np.cumsum(foreground.sum(0)) / max(1, foreground.sum())
    ids = np.minimum(np.ceil(share * objects - 1e-9), objects).clip(1).astype(np.uint8)
    result = np.where(foreground, ids[None, :], 0).astype(np.uint8)
    if len(np.unique(result)) != objects + 1:
        raise InputError(f"the demo's object cannot be cut into {objects}; give fewer --objects")
    return result


def lap(index: int, length: int) -> int:
    """The frame that is shown at ``index`` when a clip plays forwards, backwards, and so on."""
    if length == 1:
        return 0
    position = index % (2 * length - 2)
    return position if position < length else 2 * length - 2 - position
