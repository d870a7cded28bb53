"""The command ``info``: what is installed and what can run here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator

from engine import __version__, runtime, weights

PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "av",
    "pillow",
    "torch",
    "triton",
    "cuda-python",
    "tensorrt",
    "tensorrt-rtx",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the results depend on, where installed."""
    found = {"mobilevos-engine": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe() -> Iterator[str]:
    """The lines that ``python -m engine info`` prints."""
    yield "  ".join(f"{name} {version}" for name, version in versions().items())
    yield f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    yield ""
    yield "backends"
    for name, why_not in runtime.status().items():
        yield f"  {name:<12} {'no: ' + why_not if why_not else 'yes'}"
    chosen, reason = runtime.choose("auto")
    yield f"  auto is '{chosen}', {reason}"
    yield ""
    yield "models"
    for name in weights.MODELS:
        if name in weights.available():
            yield f"  {name:<28} weights {weights.short_hash(weights.weights_path(name))}"
        else:
            yield f"  {name:<28} no trained weights in this version"
