"""The output folder of a run: masks, overlay, summary, and the point to resume from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError
from engine.files import (
    FolderLock,
    make_folder,
    output_errors,
    part_of,
    sync_file,
    sync_folder,
    write_atomic,
)
from engine.media.exports import FORMATS
from engine.media.masks import write_mask

State = dict[str, NDArray[Any]]
_OURS = re.compile(r"\d{5,}\.png|\.\d{5,}\.png\.part")
_HEADER = "header"  # in the resume file, beside the segmenter's arrays under `_STATE`
_STATE = "state/"
_DIGEST = 32  # bytes of SHA-256 behind the rest of the file


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
        self._lock: FolderLock | None = None
        self._unsynced: list[Path] = []

    def mask(self, index: int) -> Path:
        """Where the mask of frame ``index`` is or will be."""
        return self.masks / f"{index:05d}.png"

    def exist(self) -> bool:
        """Whether the folder already holds anything that a run would write."""
        with output_errors(self.folder):
            files = (self.overlay, self.summary, self._resume)
            return (
                any(p.exists() for p in files)
                or bool(self._mask_files())
                or any(self.exported(name) for name in FORMATS)
            )

    def _mask_files(self) -> list[Path]:
        if not self.masks.is_dir():
            return []
        with output_errors(self.masks):
            return [p for p in self.masks.iterdir() if _OURS.fullmatch(p.name)]

    def prepare(self, fresh: bool, clear: bool, inputs: Iterable[Path]) -> None:
        """Create the folders and keep other runs out; remove what a killed run left unfinished.

        fresh: nothing is there, as far as is known; clear: remove all that an earlier run wrote.
        Raises InputError if that would remove one of the files or folders ``inputs``.
        """
        make_folder(self.folder)
        self._lock = FolderLock(self.folder)
        if fresh and self.exist():
            raise InputError(
                f"another run has just written to '{self.folder}'; choose another --out"
            )
        make_folder(self.masks)
        ours = [self.overlay, self.summary, self._resume]
        stale = [part_of(p) for p in ours]
        stale += [p for p in self._mask_files() if clear or p.suffix == ".part"]
        if clear:
            stale += [*ours, *(path for name in FORMATS for path in self.exported(name))]
        self._spare(inputs, stale)
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

    def _spare(self, inputs: Iterable[Path], stale: list[Path]) -> None:
        gone = {p.parent.resolve() / p.name for p in stale} | {p.resolve() for p in stale}
        folders = {p.parent for p in gone if p.suffix == ".png"}
        for path in inputs:
            if path.resolve() in gone | folders:
                raise InputError(
                    f"'{path}' is among the results in '{self.folder}' that would be removed; "
                    "choose another --out"
                )

    def close(self) -> None:
        """Let other runs write to the folder."""
        if self._lock is not None:
            self._lock.close()

    def keep_mask(self, index: int, ids: NDArray[np.uint8], text: Mapping[str, str]) -> None:
        """Write the mask of a frame and the text that it carries."""
        path = self.mask(index)
        write_mask(path, ids, text, sync=False)
        self._unsynced.append(path)

    def sync(self) -> None:
        """Bring the masks written so far to the disk."""
        for path in self._unsynced:
            sync_file(path)
        self._unsynced.clear()
        sync_folder(self.masks)

    def read_summary(self) -> dict[str, Any]:
        """The summary that a run wrote when it ended; empty without a good one."""
        try:
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        good = isinstance(summary, dict) and isinstance(summary.get("options"), dict)
        return summary if good else {}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        # Bytes of a file name that are no UTF-8 become \\udcNN, which JSON reads as they were.
        write_atomic(self.summary, text.encode(errors="backslashreplace"))

    def save_resume(self, index: int, fingerprint: Mapping[str, Any], state: State) -> None:
        """Store that all frames up to ``index`` are done (-1: none) and the segmenter's state."""
        self.sync()
        header = json.dumps({"index": index, "fingerprint": dict(fingerprint)}).encode()
        arrays: State = {_STATE + name: array for name, array in state.items()}
        arrays[_HEADER] = np.frombuffer(header, np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        content = buffer.getvalue()
        write_atomic(self._resume, content + hashlib.sha256(content).digest())

    def can_resume(self) -> bool:
        """Whether an unfinished run left a point to resume from."""
        return self._resume.exists()

    def load_resume(self, fingerprint: Mapping[str, Any]) -> tuple[int, State]:
        """Return (last frame done, segmenter's state).

        Raises InputError if the point is damaged or of another run.
        """
        try:
            content = self._resume.read_bytes()
            content, digest = content[:-_DIGEST], content[-_DIGEST:]
            if hashlib.sha256(content).digest() != digest:
                raise ValueError("its SHA-256 differs")
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                header = json.loads(file[_HEADER].tobytes())
                names = [name for name in file.files if name.startswith(_STATE)]
                state = {name.removeprefix(_STATE): file[name] for name in names}
            index, saved = int(header["index"]), dict(header["fingerprint"])
        except Exception as error:  # made by hand, it can raise anything
            raise InputError(
                f"'{self._resume}' is damaged ({error}); start anew with --overwrite"
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
