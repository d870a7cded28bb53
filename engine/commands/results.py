"""The output folder of a run: masks, overlay, summary, and the point to resume from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError
from engine.files import make_folder, output_errors, write_atomic
from engine.media.exports import FORMATS

State = dict[str, NDArray[Any]]
_OURS = re.compile(r"\d{5,}\.png|\.\d{5,}\.png\.part")
_HEADER = "header"  # in the resume file, beside the segmenter's arrays under `_STATE`
_STATE = "state/"


class Results:
    """``folder`` with ``masks/NNNNN.png``, ``overlay.mp4`` and ``summary.json``.

    While a run is unfinished, ``.resume.npz`` holds where it stands. Every file appears whole or
    not at all. Failures to write raise OutputError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.masks = folder / "masks"
        self.overlay = folder / "overlay.mp4"
        self.summary = folder / "summary.json"
        self.exports = folder / "exports"
        self._resume = folder / ".resume.npz"

    def mask(self, index: int) -> Path:
        """Where the mask of frame ``index`` is or will be."""
        return self.masks / f"{index:05d}.png"

    def exist(self) -> bool:
        """Whether the folder already holds anything that a run would write."""
        files = (self.overlay, self.summary, self._resume)
        return (
            any(p.exists() for p in files)
            or bool(self._mask_files())
            or any(self.exported(name) for name in FORMATS)
        )

    def _mask_files(self) -> list[Path]:
        try:
            return [p for p in self.masks.iterdir() if _OURS.fullmatch(p.name)]
        except OSError:
            return []

    def prepare(self, clear: bool) -> None:
        """Create the folders; remove what an earlier run left (all of it with ``clear``)."""
        make_folder(self.folder)
        make_folder(self.masks)
        stale = [p for p in self._mask_files() if clear or p.suffix == ".part"]
        stale += self.folder.glob(".*.part")
        stale += [self.overlay, self.summary, self._resume] if clear else []
        stale += [path for name in FORMATS for path in self.exported(name)] if clear else []
        for path in stale:
            with output_errors(path):
                path.unlink(missing_ok=True)

    def exported(self, name: str) -> list[Path]:
        """List the files of a format that ``exports/`` holds."""
        made = FORMATS[name]
        files = [self.exports / made.whole, *self.exports.glob(made.each or made.whole)]
        return sorted({path for path in files if path.is_file()})

    def remove_export(self, name: str) -> None:
        """Remove the files of a format; what else lies beside them stays."""
        for path in self.exported(name):
            with output_errors(path):
                path.unlink(missing_ok=True)

    def read_summary(self) -> dict[str, Any] | None:
        """The summary that a run wrote when it ended; None without one."""
        try:
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return summary if isinstance(summary, dict) else None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        write_atomic(self.summary, text.encode())

    def save_resume(self, index: int, fingerprint: Mapping[str, Any], state: State) -> None:
        """Store that all frames up to ``index`` are done (-1: none), and the segmenter's state."""
        header = json.dumps({"index": index, "fingerprint": dict(fingerprint)}).encode()
        arrays: State = {_STATE + name: array for name, array in state.items()}
        arrays[_HEADER] = np.frombuffer(header, np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        write_atomic(self._resume, buffer.getvalue())

    def can_resume(self) -> bool:
        """Whether an unfinished run left a point to resume from."""
        return self._resume.exists()

    def load_resume(self, fingerprint: Mapping[str, Any]) -> tuple[int, State]:
        """Return (last frame done, segmenter's state); raise InputError for another run's."""
        try:
            with np.load(self._resume, allow_pickle=False) as file:
                header = json.loads(file[_HEADER].tobytes())
                names = [name for name in file.files if name.startswith(_STATE)]
                state = {name.removeprefix(_STATE): file[name] for name in names}
            index, saved = int(header["index"]), dict(header["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(
                f"'{self._resume}' cannot be read ({error}); start anew with --overwrite"
            ) from None
        different = sorted(k for k in {*saved, *fingerprint} if saved.get(k) != fingerprint.get(k))
        if different:
            raise InputError(
                f"cannot resume: {', '.join(different)} differ from the run in '{self.folder}'; "
                "give the same, or start anew with --overwrite or another --out"
            )
        return index, state

    def remove_resume(self) -> None:
        """Remove the point to resume from: the run is finished."""
        with contextlib.suppress(OSError):
            self._resume.unlink()


def fingerprint_of_input(name: str) -> str:
    """Return a digest that tells videos and folders of images apart without reading all of them."""
    path, digest = Path(name), hashlib.sha256()
    try:
        if path.is_dir():
            for file in sorted(path.iterdir()):
                digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        else:
            with path.open("rb") as stream:
                digest.update(f"{path.stat().st_size}\n".encode())
                digest.update(stream.read(1 << 20))
    except OSError:
        return name  # a stream: its address is all there is
    return digest.hexdigest()
