"""The trained weights that ship with the package, and where to find them.

A model is two files: ``NAME.safetensors``, the weights in fp16 with batch norms folded, and
``NAME.onnx``, the step graph that the CPU runs, whose weights are external data in the former.
A third, ``NAME-int8.onnx``, which ``engine.export.quantize`` makes, is the same graph in 8 bits,
weights and all.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from engine.errors import ModelError

FOLDER = Path(__file__).parent
DEFAULT_MODEL = "mobilevos-mobilenetv2"
MODELS = ("mobilevos-resnet18", "mobilevos-mobilenetv2", "mobilevos-mobilenetv2-noaspp")


def weights_path(name: str, folder: Path = FOLDER) -> Path:
    """The weights file of model ``name`` in ``folder``."""
    return folder / f"{name}.safetensors"


def graph_path(name: str, folder: Path = FOLDER) -> Path:
    """The ONNX step graph of model ``name`` in ``folder``."""
    return folder / f"{name}.onnx"


def int8_path(name: str, folder: Path = FOLDER) -> Path:
    """The int8 step graph of model ``name`` in ``folder``; see `engine.export.quantize`."""
    return folder / f"{name}-int8.onnx"


def available(folder: Path = FOLDER) -> list[str]:
    """Names of the models whose two files are in ``folder``."""
    return [
        n for n in MODELS if weights_path(n, folder).is_file() and graph_path(n, folder).is_file()
    ]


def find(name: str, folder: Path = FOLDER) -> tuple[Path, Path]:
    """Paths of the weights and the graph of ``name``.

    Raises
    ------
    ModelError: for an unknown name, or one without weights in ``folder``.
    """
    if name not in MODELS:
        raise ModelError(f"unknown model '{name}'; choose one of: {', '.join(available(folder))}")
    if name not in available(folder):
        raise ModelError(
            f"model '{name}' has no trained weights in '{folder}'; "
            f"with weights there: {', '.join(available(folder)) or 'none'}"
        )
    return weights_path(name, folder), graph_path(name, folder)


def short_hash(path: Path) -> str:
    """First 12 hexadecimal digits of the file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
