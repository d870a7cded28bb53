"""ONNX graphs to engines, by TensorRT for RTX or by the full TensorRT: one API for both.

``tensorrt-rtx`` builds on any machine, for GPUs that need not be there: an engine holds what is
compiled for the GPU at hand when it is first loaded. ``tensorrt`` (10.12 or newer) tunes on the GPU
in the machine, for that GPU. Precision lies in the graph: both build strongly typed.

An engine is built in a fresh process, ``python -m engine.build.trt``. TensorRT orders an engine's
outputs by their addresses, so that the same graph gives other bytes after other work, and a failed
build leaves a trace in the next; in a fresh process the same graph gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.build.targets import load
from engine.errors import BackendError, one_line, run
from engine.files import make_folder, write_atomic

_MEMORY = {
    "activation_bytes": re.compile(r"Total Activation Memory: (\d+) bytes"),
    "weight_bytes": re.compile(r"Total Weights Memory: (\d+) bytes"),
}

#: Input name → least, best and greatest shape.
Profile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine. Bytes of device memory as TensorRT reports them, 0 = unknown."""

    data: bytes
    activation_bytes: int
    weight_bytes: int
    seconds: float


def build_engine(
    runtime: str,
    graph: bytes,
    targets: Sequence[str],
    precision: str,
    profile: Profile | None = None,
    timing_cache: Path | None = None,
) -> BuiltEngine:
    """Build an engine of a serialised ONNX graph, in a process of its own.

    timing_cache: the full TensorRT's, read and written. Raises BackendError with TensorRT's reason.
    """
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "graph.onnx").write_bytes(graph)
        request = {
            "runtime": runtime,
            "targets": list(targets),
            "precision": precision,
            "profile": profile,
            "timing_cache": str(timing_cache.absolute()) if timing_cache else None,
        }
        (Path(folder) / "request.json").write_text(json.dumps(request))
        paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        # The child's memory must not depend on where the files lie: it works in their folder.
        process = subprocess.run(
            [sys.executable, "-m", "engine.build.trt"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode != 0:
            code = f"it ended with code {process.returncode}"
            lines = process.stderr.strip().splitlines() or [code]
            raise BackendError(
                f"{runtime} cannot build for {', '.join(targets)}: "
                + lines[-1].removeprefix("error: ")
            )
        told = json.loads((Path(folder) / "told.json").read_text())
        return BuiltEngine(data=(Path(folder) / "engine").read_bytes(), **told)


def build_in_this_process(
    trt: Any,
    runtime: str,
    graph: bytes,
    targets: Sequence[str],
    precision: str,
    profile: Profile | None = None,
    timing_cache: Path | None = None,
) -> BuiltEngine:
    """Build with the module ``trt`` in this process; see :func:`build_engine`."""
    began = time.perf_counter()
    log = _make_log(trt)
    builder = trt.Builder(log)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # implied from 11 on
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        reasons = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise BackendError(one_line("; ".join(reasons)) or "the ONNX parser gave no reason")
    config = builder.create_builder_config()
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is asked for where 10 bits do not do
    cache = None
    if runtime == "tensorrt-rtx":
        # Without it the runtime allocates while it runs, and no CUDA graph can be captured.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            name = target.replace("sm_", "SM")
            config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    elif timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.is_file() else b""
        cache = config.create_timing_cache(known)
        config.set_timing_cache(cache, False)
    if profile:
        shapes = builder.create_optimization_profile()
        for name, (least, best, most) in profile.items():
            shapes.set_shape(name, least, best, most)
        config.add_optimization_profile(shapes)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise BackendError(one_line(log.worst()) or "TensorRT gave no reason")
    if cache is not None and timing_cache is not None:
        make_folder(timing_cache.parent)
        write_atomic(timing_cache, bytes(config.get_timing_cache().serialize()))
    told = {name: log.number(pattern) for name, pattern in _MEMORY.items()}
    return BuiltEngine(bytes(data), seconds=time.perf_counter() - began, **told)


def _make_log(trt: Any) -> Any:
    """A logger that keeps what TensorRT says; its base class is known only at run time."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append((severity, message))

        def worst(self) -> str:
            """The first error, or the last line of all."""
            bad = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
            errors = [text for severity, text in self.lines if severity in bad]
            return errors[0] if errors else (self.lines[-1][1] if self.lines else "")

        def number(self, pattern: re.Pattern[str]) -> int:
            """Return the last number in the log that fits, or 0."""
            found = [m for _, text in self.lines if (m := pattern.search(text))]
            return int(found[-1].group(1)) if found else 0

    return Log()


def main(argv: list[str] | None = None) -> int:
    """What a build's process runs: ``request.json`` and ``graph.onnx`` → ``engine``."""
    argparse.ArgumentParser(prog="python -m engine.build.trt", description=__doc__).parse_args(argv)
    return run(_build_here)


def _build_here() -> None:
    request = json.loads(Path("request.json").read_text())
    cache = request["timing_cache"]
    built = build_in_this_process(
        load(request["runtime"]),
        request["runtime"],
        Path("graph.onnx").read_bytes(),
        request["targets"],
        request["precision"],
        request["profile"],
        Path(cache) if cache else None,
    )
    Path("engine").write_bytes(built.data)
    told = {
        "activation_bytes": built.activation_bytes,
        "weight_bytes": built.weight_bytes,
        "seconds": built.seconds,
    }
    Path("told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    raise SystemExit(main())
