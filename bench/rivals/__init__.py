"""Other people's networks in our harness: a small adapter for each style of checkout.

Nothing of their code is here. An adapter imports the user's own clone, which therefore runs with
the user's rights: time only code that you trust. It speaks the interface that the project shows
in its own evaluation script:

- XMem: github.com/hkchengrex/XMem, eval.py and inference/inference_core.py
- STCN: github.com/hkchengrex/STCN, eval_generic.py, inference_core.py, inference_memory_bank.py
- Cutie: github.com/hkchengrex/Cutie, scripting_demo.py, cutie/utils/get_default_model.py
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from bench.cases import RIVAL, Case
from engine.errors import InputError

#: A file that only a checkout of that style has → the adapter's module.
STYLES = {
    "cutie/inference/inference_core.py": "cutie",
    "inference/inference_core.py": "xmem",
    "inference_memory_bank.py": "stcn",
}


def style_of(checkout: Path) -> str:
    """Which adapter fits a checkout; raises InputError if none does."""
    for file, style in STYLES.items():
        if (checkout / file).is_file():
            return style
    raise InputError(
        f"'{checkout}' is not a checkout of XMem, STCN or Cutie: it has none of "
        f"{', '.join(STYLES)}; clone one of them and give its folder"
    )


def parse_rival(text: str) -> Case:
    """``NAME=PATH[:WEIGHTS]`` as a case; raises InputError if the folder or file is not there."""
    name, _, rest = text.partition("=")
    folder, _, weights = rest.partition(os.pathsep) if os.pathsep in rest else (rest, "", "")
    if not name or not folder:
        raise InputError(f"--rival {text}: write it as NAME=PATH or NAME=PATH{os.pathsep}WEIGHTS")
    style_of(Path(folder))
    if weights and not Path(weights).is_file():
        raise InputError(f"--rival {name}: the weights '{weights}' do not exist")
    return Case(
        name,
        RIVAL,
        "own",
        random=not weights,
        checkout=str(Path(folder).resolve()),
        checkpoint=str(Path(weights).resolve()) if weights else "",
    )


def open_rival(checkout: Path, weights: str, threads: int) -> Any:
    """Load a checkout; returns a `bench.subjects.Subject`.

    Call it once a process: the checkouts have modules of the same names.
    """
    import torch

    torch.set_num_threads(threads)
    adapter = importlib.import_module(f"bench.rivals.{style_of(checkout)}")
    sys.path.insert(0, str(checkout))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return adapter.Rival(checkout, weights, device)
