"""The command ``export``: the results of ``segment`` in the formats of other tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from engine.commands.results import Results
from engine.errors import InputError
from engine.files import make_folder, write_atomic
from engine.media.exports import FORMATS
from engine.media.record import mask_files, read_frame

Say = Callable[[str], None]


def export(
    folder: Path,
    formats: Sequence[str],
    resume: bool,
    overwrite: bool,
    say: Say,
    warn: Say,
    keep_lost: bool = False,
) -> None:
    """Write the results in ``folder`` in each of ``formats``, names of `FORMATS`.

    Raises InputError for a folder without masks or a damaged mask, and for a format that is there
    already unless ``resume`` or ``overwrite`` is set; OutputError.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one of them")
    results = Results(folder)
    mask_files(results.masks)  # raises if there is none
    there = [name for name in formats if results.exported(name)]
    if there and not (resume or overwrite):
        raise InputError(
            f"'{results.exports}' already holds {', '.join(there)}; add --overwrite to replace it, "
            "or --resume to keep the files of frames that are there"
        )
    if results.can_resume():
        warn(f"note: the run in '{folder}' is unfinished; its frames so far are exported")
    for name in there if overwrite else ():
        results.remove_export(name)
    write_exports(results, formats, say, keep_lost)


def write_exports(
    results: Results, formats: Sequence[str], say: Say, keep_lost: bool = False
) -> None:
    """Write ``formats`` to ``exports/``; a frame's own file that is there already is kept.

    keep_lost: with the pixels of objects that a frame lost.
    """
    for name in formats:
        made = FORMATS[name]
        masks = mask_files(results.masks)
        with tqdm(masks, unit=" frames", desc=name, disable=None, leave=False) as bar:
            for place, content in made.write(read_frame(mask, not keep_lost) for mask in bar):
                path = results.exports / place
                if not path.parent.is_dir():
                    make_folder(path.parent)
                if not (made.each and path.match(made.each) and path.exists()):
                    write_atomic(path, content)
        say(f"{name + ':':<8} {results.exports / made.whole}")
