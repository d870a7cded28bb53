"""The trained weights that ship with the package, and where to find them.

A model is two files: ``NAME.safetensors``, the weights in fp16 with batch norms folded, and
``NAME.onnx``, the step graph that the CPU runs, whose weights are external data in the former.
A third, ``NAME-int8.onnx``, which ``engine.export.quantize`` makes, is the same graph in 8 bits,
weights and all.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from engine.errors import ModelError
from engine.files import write_atomic

FOLDER = Path(__file__).parent
SUMS = "SHA256SUMS"
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
    """Paths of the weights and the graph of ``name``, whose content was checked.

    Raises
    ------
    ModelError: for an unknown name, one without weights in ``folder``, or damaged files.
    """
    if name not in MODELS:
        raise ModelError(f"unknown model '{name}'; choose one of: {', '.join(available(folder))}")
    if name not in available(folder):
        raise ModelError(
            f"model '{name}' has no trained weights in '{folder}'; "
            f"with weights there: {', '.join(available(folder)) or 'none'}"
        )
    return check_file(weights_path(name, folder)), check_file(graph_path(name, folder))


def short_hash(path: Path) -> str:
    """First 12 hexadecimal digits of the file's SHA-256."""
    return _sha256(path)[:12]


def check_file(path: Path) -> Path:
    """Return ``path``; raise ModelError unless its SHA-256 is the one in `SUMS` beside it.

    A folder without `SUMS` may hold copies of the files that ship with the package.
    """
    folder = path.parent
    told = _read_sums(folder if (folder / SUMS).is_file() else FOLDER).get(path.name)
    if told == _sha256(path):
        return path
    if (folder / SUMS).is_file():
        why = f"its SHA-256 is not that in {SUMS}" if told else f"{SUMS} does not name it"
        raise ModelError(f"'{path}' is damaged or changed: {why}; get the folder again")
    raise ModelError(
        f"'{path}' is not the file that ships with the package, and no {SUMS} is beside it; if you "
        f"trust it, run in its folder: sha256sum *.safetensors *.onnx > {SUMS}"
    )


def write_sums(folder: Path) -> None:
    """Write `SUMS` of the models' files in ``folder``, as ``sha256sum`` does."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.onnx")])
    lines = [f"{_sha256(path)}  {path.name}\n" for path in files]
    write_atomic(folder / SUMS, "".join(lines).encode())


def _read_sums(folder: Path) -> dict[str, str]:
    """Read `SUMS`: name → SHA-256."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        return {name.lstrip("*"): digest for digest, name in (x.split(maxsplit=1) for x in lines)}
    except (OSError, ValueError) as error:
        raise ModelError(f"'{folder / SUMS}' is damaged ({error}); get the folder again") from None


def _sha256(path: Path) -> str:
    try:
        about = path.stat()
        return _sha256_of(path, about.st_size, about.st_mtime_ns)
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}; check its rights") from None


@functools.lru_cache(32)
def _sha256_of(path: Path, size: int, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
