"""What is loaded and how: one place for every option and its default."""

from __future__ import annotations

import numbers
import os
from dataclasses import dataclass
from pathlib import Path

from engine.bundle import DEFAULT_FOLDER
from engine.errors import InputError
from engine.weights import DEFAULT_MODEL, FOLDER


@dataclass(frozen=True)
class LoadOptions:
    """How `Segmenter.load` is to load a model; the command line fills one, every job holds one.

    Parameters
    ----------
    model, backend: of those that ``python -m engine info`` lists; ``auto``: the fastest that runs.
    size: short side in pixels at which the network works, 16 or more; larger frames are shrunk to
        it and their masks enlarged again, smaller ones are left alone.
    threads: CPU threads, 1 or more; None means one a core.
    weights: the folder to take the model's files from.
    memory: ``finite``, the frame where an object was given and the most recent one; or
        ``infinite``, also every fifth frame: slower and larger with every frame.
    tta: average with what the network makes of the mirrored frames: twice the time.
    blank_lost: make the pixels of an object that a frame lost background in its mask.
    output: ``numpy``, or on a GPU backend ``dlpack``: masks stay on the GPU, as arrays for DLPack
        and ``__cuda_array_interface__``, complete when they are returned.
    bundles: the folder of the bundles that ``python -m engine.build`` wrote.
    expect_sha256: of the manifest of the only bundle that may be loaded.

    Raises InputError for a ``size``, ``threads`` or ``memory`` that cannot be.
    """

    model: str = DEFAULT_MODEL
    backend: str = "auto"
    size: int = 480
    threads: int | None = None
    weights: Path | str = FOLDER
    memory: str = "finite"
    tta: bool = False
    blank_lost: bool = False
    output: str = "numpy"
    bundles: Path | str = DEFAULT_FOLDER
    expect_sha256: str | None = None

    def __post_init__(self) -> None:
        size, threads = self.size, self.threads
        if not _whole(size) or size < 16:
            raise InputError(f"size is {size}, but the network needs at least 16 whole pixels")
        most = max(64, 4 * (os.cpu_count() or 1))
        if threads is not None and not (_whole(threads) and 1 <= threads <= most):
            raise InputError(f"threads is {threads}; give 1 to {most}, or leave it out")
        for name, path in (("weights", self.weights), ("bundles", self.bundles)):
            if not isinstance(path, (str, os.PathLike)):
                raise InputError(f"{name} is {path!r}; give the path of a folder")
        from engine.memory import check_policy  # with NumPy, which a command line can do without

        check_policy(self.memory)


def _whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
