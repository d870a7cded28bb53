"""A bundle: everything that a GPU runs for one model, in a folder with a manifest of hashes.

``<model>-<HxW>-k<K>-<precision>-<runtime>/`` holds ``manifest.json``, the stages' ONNX graphs,
their engines, and the kernels' cubins with the JSON that says how to launch them. Nothing in it is
unpickled. The hashes find corruption, not malice: an engine and a cubin are executable content, so
load only what you trust, or pin the manifest with ``expect_sha256``.

Longer than other files, so that one place knows the format: how it is written, checked and found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelError
from engine.files import make_folder, output_errors

FORMAT = 2
MANIFEST = "manifest.json"
#: Written into a finished bundle by ``python -m engine validate``; not part of what is hashed.
VALIDATION = "validation.json"
DEFAULT_FOLDER = Path("build/bundles")
PRECISIONS = ("fp16", "fp32")
_SYMBOL = re.compile(r"[0-9]{0,4}[hwn]")
_MOST_BYTES = 1 << 24  # of a manifest
_MOST_SIDE = 1 << 14  # of a frame, in pixels
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Tensor:
    """An input or output of a stage: ``dtype`` as NumPy names it, and ``shape``.

    A side that the video's size decides is a text: a number of times ``h`` = H/16, ``w`` = W/16 or
    ``n`` = h·w, such as ``"16h"``.
    """

    dtype: str
    shape: tuple[int | str, ...]

    @property
    def open(self) -> bool:
        """Whether a side depends on the video's size."""
        return any(isinstance(side, str) for side in self.shape)

    def at(self, size: tuple[int, int]) -> tuple[int, ...]:
        """The shape at the network's padded size (H, W)."""
        h, w = size[0] // 16, size[1] // 16
        units = {"h": h, "w": w, "n": h * w}
        return tuple(
            side if isinstance(side, int) else int(side[:-1] or 1) * units[side[-1]]
            for side in self.shape
        )


@dataclass(frozen=True)
class Engine:
    """One engine file. ``activation_bytes``: device memory that one run needs beside its inputs and
    outputs; ``weight_bytes``: what the engine's weights take on the device. 0 = unknown."""

    file: str
    activation_bytes: int
    weight_bytes: int


@dataclass(frozen=True)
class Stage:
    """A stage: the ONNX graph that each target's engine was built from, and the engines.

    Several targets may share a file.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    onnx: dict[str, str]
    engines: dict[str, Engine]


@dataclass(frozen=True)
class File:
    """The hash and the size that a file of the bundle must have."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    model_sha256: of the ``.safetensors`` file. runtime: ``tensorrt-rtx`` or ``tensorrt``, with its
    version. size: (H, W), the network's padded resolution, the largest if ``dynamic`` gives
    ((h, w) least, (h, w) most). objects: K, the columns of the bucket. targets: architectures
    as ``sm_86``. kernels: target → op → the cubin's JSON. files: all but the manifest and the
    validation.
    """

    model: str
    model_sha256: str
    precision: str
    runtime: str
    runtime_version: str
    size: tuple[int, int]
    objects: int
    dynamic: tuple[tuple[int, int], tuple[int, int]] | None
    targets: tuple[str, ...]
    versions: dict[str, str]
    stages: dict[str, Stage]
    kernels: dict[str, dict[str, str]]
    parity: dict[str, Any]
    files: dict[str, File]
    format: int = FORMAT

    @property
    def name(self) -> str:
        """The folder's name."""
        height, width = self.size
        return f"{self.model}-{height}x{width}-k{self.objects}-{self.precision}-{self.runtime}"

    def rebuild_command(self) -> str:
        """The command that builds this bundle again."""
        height, width = self.size
        return (
            f"python -m engine.build --{self.precision} --model {self.model} "
            f"--size {height}x{width} --objects {self.objects} --runtime {self.runtime}"
        )


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been checked."""

    folder: Path
    manifest: Manifest
    sha256: str  # of manifest.json, and so of everything in it

    def path(self, file: str) -> Path:
        """The path of a file of the manifest."""
        return self.folder / file


def write_bundle(out: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write ``files`` and the manifest, completed by their hashes, to ``out / manifest.name``.

    The folder appears whole or not at all and replaces an earlier one. Returns it. Raises
    OutputError if it cannot be written.
    """
    hashed = {n: File(hashlib.sha256(b).hexdigest(), len(b)) for n, b in sorted(files.items())}
    complete = asdict(manifest) | {"files": {n: asdict(f) for n, f in hashed.items()}}
    text = json.dumps(complete, indent=1) + "\n"
    folder = out / manifest.name
    make_folder(out)
    with output_errors(folder):
        work = Path(tempfile.mkdtemp(prefix=f".{manifest.name}.", dir=out))
        try:
            for name, data in files.items():
                (work / name).write_bytes(data)
            (work / MANIFEST).write_text(text, encoding="utf-8")
            work.chmod(0o755)
            old = Path(tempfile.mkdtemp(prefix=f".{manifest.name}.", dir=out))
            if folder.exists():
                folder.replace(old)  # an empty folder may be replaced, a full one may not
            work.replace(folder)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return folder


def load_bundle(folder: Path, expect_sha256: str | None = None) -> Bundle:
    """Read a bundle and check it: format, names, sizes and hashes of all files.

    ``expect_sha256`` (at least 12 hexadecimal digits) pins the manifest. Raises ModelError with
    the command that builds the bundle anew.
    """
    path = folder / MANIFEST
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:  # a pipe would be waited for
            raise OSError(0, "it is missing or no such file")
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or error
        raise ModelError(
            f"'{folder}' is no bundle: {MANIFEST} cannot be read ({why}); "
            "run: python -m engine.build --fp16"
        ) from error
    sha256 = hashlib.sha256(raw).hexdigest()
    if expect_sha256 is not None:
        wanted = expect_sha256.lower()
        if not re.fullmatch(r"[0-9a-f]{12,64}", wanted):
            raise ModelError(
                f"'{expect_sha256}' is no SHA-256; give 12 to 64 hexadecimal digits of it"
            )
        if not sha256.startswith(wanted):
            raise ModelError(
                f"'{path}' has the SHA-256 {sha256}, not the expected {expect_sha256}; it is "
                "another build, or was changed: get the right bundle or correct the expectation"
            )
    manifest = parse_manifest(raw, path)
    _check_files(folder, manifest)
    return Bundle(folder, manifest, sha256)


def parse_manifest(raw: bytes, path: Path) -> Manifest:
    """Parse a manifest's bytes; raise ModelError for another form or version."""
    try:
        data = json.loads(raw)
        found = data.get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelError(_damaged(path, "it is not JSON")) from error
    if found != FORMAT:
        raise ModelError(
            f"'{path}' has format {found}, this version reads {FORMAT}; "
            "build it again: python -m engine.build"
        )
    try:
        stages = {
            name: Stage(
                inputs=_tensors(stage["inputs"]),
                outputs=_tensors(stage["outputs"]),
                onnx=dict(stage["onnx"]),
                engines={t: Engine(**e) for t, e in stage["engines"].items()},
            )
            for name, stage in data["stages"].items()
        }
        files = {name: File(**f) for name, f in data["files"].items()}
        dynamic = data["dynamic"] and tuple((int(h), int(w)) for h, w in data["dynamic"])
        height, width = data["size"]
        manifest = Manifest(
            **data
            | {
                "stages": stages,
                "files": files,
                "dynamic": dynamic,
                "size": (int(height), int(width)),
                "targets": tuple(data["targets"]),
            }
        )
        named = [*files]
        for stage in stages.values():
            named += [*stage.onnx.values(), *(e.file for e in stage.engines.values())]
        for ops in manifest.kernels.values():
            named += ops.values()
        _check_values(manifest)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ModelError(_damaged(path, f"{type(error).__name__}: {error}")) from error
    for name in named:
        # A plain file name cannot lead out of the folder, on any system.
        if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
            raise ModelError(_damaged(path, f"it names the file {name!r}, which is not plain"))
        if name not in files:
            raise ModelError(_damaged(path, f"it uses the file '{name}' without its hash"))
    return manifest


def _check_values(m: Manifest) -> None:
    """Raise ValueError for values that no build writes."""
    if not m.stages or any({*m.targets} - {*stage.onnx} for stage in m.stages.values()):
        raise ValueError("its stages and targets do not fit together")
    if m.precision not in PRECISIONS:
        raise ValueError(f"its precision is {m.precision}")
    if m.dynamic is not None and len(m.dynamic) != 2:
        raise ValueError(f"its range of sizes is {m.dynamic}")
    numbers = [*m.size, m.objects, *(side for size in m.dynamic or () for side in size)]
    if not all(isinstance(n, int) and 0 < n <= _MOST_SIDE for n in numbers) or m.objects > 255:
        raise ValueError(f"its size or objects are {numbers}")


def _damaged(path: Path, reason: str) -> str:
    return f"'{path}' is damaged ({reason}); build the bundle again: python -m engine.build --fp16"


def _tensors(data: Mapping[str, Any]) -> dict[str, Tensor]:
    return {n: Tensor(str(t["dtype"]), tuple(map(_side, t["shape"]))) for n, t in data.items()}


def _side(side: Any) -> int | str:
    if isinstance(side, int) or (isinstance(side, str) and _SYMBOL.fullmatch(side)):
        return side
    raise ValueError(f"{side!r} is no side of a tensor")


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Raise ModelError unless the folder holds exactly the manifest's files with their hashes."""
    remedy = f"build it again: {manifest.rebuild_command()}"
    there = {p.name for p in folder.iterdir()}
    extra = sorted(there - {*manifest.files, MANIFEST, VALIDATION})
    if extra:
        raise ModelError(
            f"'{folder}' holds '{extra[0]}', which its manifest does not name; "
            f"remove it, or {remedy}"
        )
    for name, file in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise ModelError(f"'{path}' is missing or no plain file; {remedy}")
        size = path.stat().st_size
        if size != file.bytes:
            raise ModelError(f"'{path}' has {size} bytes instead of {file.bytes}; {remedy}")
        if file_sha256(path) != file.sha256:
            raise ModelError(f"'{path}' is damaged: its SHA-256 is not the manifest's; {remedy}")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def find_bundle(
    model: str,
    size: tuple[int, int],
    objects: int = 1,
    precision: str | None = None,
    runtime: str | None = None,
    folder: Path = DEFAULT_FOLDER,
) -> Path:
    """Return the folder of the bundle that fits best; its files are not checked.

    size: (H, W), the network's padded resolution (``Geometry.padded``), which must be the bundle's
    or lie in its range. Of several, the smallest bucket that holds ``objects`` wins, then fp16,
    then TensorRT, which was tuned on this machine's GPU.

    Raises ModelError, which names the command that builds a fitting one.
    """
    found = []
    for path in sorted(folder.glob(f"{model}-*/{MANIFEST}")) if folder.is_dir() else []:
        with contextlib.suppress(ModelError, OSError):
            m = parse_manifest(path.read_bytes(), path)
            fits = m.model == model and m.objects >= objects and _takes(m, size)
            if fits and precision in (None, m.precision) and runtime in (None, m.runtime):
                rank = (m.precision != "fp16", m.runtime != "tensorrt")
                found.append((m.objects, *rank, path.parent))
    if not found:
        bucket = 1 << max(0, objects - 1).bit_length()
        raise ModelError(
            f"no bundle for {model} at {size[0]}x{size[1]} with {objects} object(s) in '{folder}'; "
            f"run: python -m engine.build --{precision or 'fp16'} --model {model} "
            f"--size {size[0]}x{size[1]} --objects {bucket}"
            + (f" --runtime {runtime}" if runtime else "")
        )
    return min(found)[-1]


def _takes(manifest: Manifest, size: tuple[int, int]) -> bool:
    if manifest.dynamic is None:
        return manifest.size == size
    low, high = manifest.dynamic
    return all(a <= s <= b for a, s, b in zip(low, size, high, strict=True))
