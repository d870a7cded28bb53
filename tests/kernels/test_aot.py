"""``python -m kernels.aot``: what it writes, that it needs no torch, that it is deterministic."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kernels
from kernels import aot


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One target's files, written by a copy of the sources, from a fresh cache, without torch."""
    root = tmp_path_factory.mktemp("aot")
    shutil.copytree(Path(kernels.__file__).parent, root / "kernels")
    code = (
        "import sys; sys.modules['torch'] = None\n"  # importing it would now raise
        "from kernels.aot import main; sys.exit(main(['--target', 'sm_86', '--out', 'out']))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    environment |= {"TRITON_CACHE_DIR": str(root / "cache"), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return root / "out"


@pytest.mark.build
def test_the_same_sources_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    """Another process, folder and cache: every file is equal."""
    for variant in aot.variants("sm_86"):
        aot.write(aot.compile_variant(variant, "sm_86"), tmp_path)
    names = sorted(p.name for p in written.iterdir())
    assert names == sorted(p.name for p in tmp_path.iterdir())
    for name in names:
        assert (written / name).read_bytes() == (tmp_path / name).read_bytes(), name


@pytest.mark.build
def test_metadata_describes_the_files(written: Path) -> None:
    metadata = {p.name: json.loads(p.read_text()) for p in written.glob("*.json")}
    assert {m["op"] for m in metadata.values()} == {
        "memory_read",
        "memory_read_merge",
        "preprocess",
        "mask_head",
    }
    for name, m in metadata.items():
        stem = name.removesuffix(".json")
        assert stem == f"{m['name']}.sm_86"
        for kind in ("cubin", "ptx"):
            data = (written / f"{stem}.{kind}").read_bytes()
            assert hashlib.sha256(data).hexdigest() == m["sha256"][kind]
        assert m["code_for"] == "sm_86"
        assert m["kernel"].encode() in (written / f"{stem}.cubin").read_bytes()
        assert [p["name"] for p in m["parameters"]][-2:] == ["global_scratch", "profile_scratch"]
        assert m["threads"] % 32 == 0
        assert len(m["grid"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "sm_99"], "unknown target 'sm_99'; known: sm_75, sm_80"),
        (["--target", ","], "--target names none"),
        (["--value-dim", "100"], "--value-dim must be a multiple of 64 up to 512, got 100"),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        aot.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
