"""The demo's clip, an excerpt of Big Buck Bunny, and the mask of its first frame."""

from __future__ import annotations

from pathlib import Path

_ASSETS = Path(__file__).parent.parent / "assets"
CLIP = _ASSETS / "demo.mp4"
MASK = _ASSETS / "demo-mask.png"
CREDIT = (
    "Big Buck Bunny © 2008 Blender Foundation, www.bigbuckbunny.org, "
    "licence CC BY 3.0 (creativecommons.org/licenses/by/3.0)"
)
