"""Bundles: what is written is what is read, and nothing else is ever loaded."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from engine import bundle as bundles
from engine.bundle import Bundle, Engine, Manifest, Stage, Tensor, find_bundle, load_bundle
from engine.errors import ModelError, OutputError

FILES = {
    "decode.onnx": b"graph",
    "decode.sm_86.engine": b"engine" * 50,
    "read.sm_86.json": b"{}",
    "read.sm_86.cubin": b"cubin",
}
MANIFEST = Manifest(
    model="mobilevos-mobilenetv2",
    model_sha256="ab" * 32,
    precision="fp16",
    runtime="tensorrt-rtx",
    runtime_version="1.7.1",
    size=(64, 96),
    objects=2,
    dynamic=None,
    targets=("sm_86",),
    versions={"onnx": "1"},
    stages={
        "decode": Stage(
            inputs={"image": Tensor("float16", (1, 3, 64, 96))},
            outputs={"scores": Tensor("float32", (2, 2))},
            onnx={"sm_86": "decode.onnx"},
            engines={"sm_86": Engine("decode.sm_86.engine", 1000, 10)},
        )
    },
    kernels={"sm_86": {"memory_read": "read.sm_86.json"}},
    parity={"sm_86": {"free_iou": 1.0}},
    files={},
)


@pytest.fixture
def folder(tmp_path) -> Path:
    return bundles.write_bundle(tmp_path, MANIFEST, FILES)


def edit(folder: Path, **changes: object) -> None:
    path = folder / bundles.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_written_is_read(folder):
    bundle = load_bundle(folder)
    assert isinstance(bundle, Bundle)
    assert folder.name == "mobilevos-mobilenetv2-64x96-k2-fp16-tensorrt-rtx"
    assert replace(bundle.manifest, files={}) == MANIFEST
    assert {n: f.bytes for n, f in bundle.manifest.files.items()} == {
        n: len(b) for n, b in FILES.items()
    }
    engine = bundle.manifest.stages["decode"].engines["sm_86"]
    assert bundle.path(engine.file).read_bytes() == FILES[engine.file]


def test_the_same_input_gives_the_same_manifest(folder, tmp_path):
    again = bundles.write_bundle(tmp_path / "b", MANIFEST, dict(reversed(FILES.items())))
    assert (again / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()


def test_a_dynamic_manifest_survives(tmp_path):
    decode = MANIFEST.stages["decode"]
    image = Tensor("float16", (1, 3, "16h", "16w"))
    wide = replace(
        MANIFEST,
        dynamic=((32, 32), (96, 96)),
        stages={"decode": replace(decode, inputs={"image": image})},
    )
    read = load_bundle(bundles.write_bundle(tmp_path, wide, FILES)).manifest
    assert read.dynamic == wide.dynamic and read.stages == wide.stages
    assert image.open and image.at((64, 96)) == (1, 3, 64, 96)
    assert Tensor("float32", (2, "n", "w")).at((32, 64)) == (2, 8, 4)


def test_writing_replaces_an_earlier_bundle_whole(folder, tmp_path):
    (folder / "left over").write_text("x")
    few = {n: b for n, b in FILES.items() if "read" not in n}
    again = bundles.write_bundle(tmp_path, replace(MANIFEST, kernels={}), few)
    assert again == folder and load_bundle(folder).manifest.kernels == {}
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_a_failed_write_leaves_the_earlier_bundle(folder, tmp_path, monkeypatch):
    before = (folder / "manifest.json").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="disk is full"):
        bundles.write_bundle(tmp_path, replace(MANIFEST, versions={}), FILES)
    assert (folder / "manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_validation_may_lie_beside(folder):
    (folder / bundles.VALIDATION).write_text("{}")
    load_bundle(folder)


def flip(folder: Path) -> None:
    path = folder / "decode.sm_86.engine"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)


def link(folder: Path) -> None:
    path = folder / "decode.onnx"
    outside = folder.parent / "outside"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


def traverse(folder: Path) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    data["files"]["../outside"] = data["files"].pop("decode.onnx")
    data["stages"]["decode"]["onnx"]["sm_86"] = "../outside"
    (folder / "manifest.json").write_text(json.dumps(data))


def unhashed(folder: Path) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    del data["files"]["read.sm_86.json"]
    (folder / "read.sm_86.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "decode.sm_86.engine' is damaged"),
        (link, "no plain file"),
        (traverse, "not plain"),
        (unhashed, "without its hash"),
        (lambda f: (f / "decode.onnx").unlink(), "decode.onnx' is missing"),
        (lambda f: (f / "decode.onnx").write_bytes(b"gra"), "3 bytes instead of 5"),
        (lambda f: (f / "sitecustomize.py").write_text("x"), "does not name"),
        (lambda f: (f / "manifest.json").unlink(), "is no bundle"),
        (lambda f: (f / "manifest.json").write_text("{"), "not JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), "not JSON"),
        (lambda f: edit(f, format=99), "has format 99, this version reads 2"),
        (lambda f: edit(f, surprise=1), "surprise"),
        (lambda f: edit(f, stages={"decode": {}}), "damaged"),
        (lambda f: edit(f, size=[64]), "damaged"),
        (lambda f: edit(f, kernels={"sm_86": {"memory_read": ["a"]}}), "not plain"),
    ],
)
def test_damage_is_one_line_with_the_remedy(folder, damage, message):
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_bundle(folder)
    assert "python -m engine.build" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 99_999,
        b'{"a":' * 99_999,
        b"[]",
        b"\xff",
        *(
            json.dumps({"format": bundles.FORMAT, **json.loads(json.dumps(change))}).encode()
            for change in (
                {"size": [float("inf"), 64]},
                {"size": [-64, 96]},
                {"size": "ab"},
                {"objects": "x"},
                {"objects": 10**9},
                {"targets": ["sm_1"]},
                {"targets": 5},
                {"stages": {}},
                {"stages": []},
                {"precision": 5},
                {"dynamic": [[float("inf"), 1], [2, 3]]},
                {"kernels": []},
                {"files": {"a": 1}},
            )
        ),
    ],
    ids=lambda raw: repr(raw[:60]),
)
def test_a_manifest_of_anything_is_one_line(folder, raw):
    path = folder / bundles.MANIFEST
    if raw.startswith(b'{"format'):
        raw = json.dumps(json.loads(path.read_text()) | json.loads(raw)).encode()
    path.write_bytes(raw)
    with pytest.raises(ModelError, match="is damaged") as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_a_manifest_that_is_no_file(folder):
    path = folder / bundles.MANIFEST
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="is no bundle"):
        load_bundle(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ModelError, match="is no bundle"):
        load_bundle(folder)
    with pytest.raises(ModelError, match="is no bundle"):
        load_bundle(Path("a\0b"))


def test_the_rebuild_command_names_the_bundle(folder):
    flip(folder)
    with pytest.raises(ModelError, match="--size 64x96 --objects 2 --runtime tensorrt-rtx"):
        load_bundle(folder)


def test_a_pinned_manifest(folder):
    sha256 = load_bundle(folder).sha256
    load_bundle(folder, sha256)
    load_bundle(folder, sha256[:12].upper())
    with pytest.raises(ModelError, match="not the expected"):
        load_bundle(folder, "0" * 64)
    for text in ("", "0123", "not hexadecimal!", sha256 + "0"):
        with pytest.raises(ModelError, match="no SHA-256"):
            load_bundle(folder, text)


def test_finding(tmp_path):
    def put(**changes: object) -> Path:
        return bundles.write_bundle(tmp_path, replace(MANIFEST, **changes), FILES)

    small, large = put(objects=1), put(objects=4)
    fp32 = put(objects=1, precision="fp32")
    tuned = put(objects=1, runtime="tensorrt")
    dynamic = put(model="mobilevos-resnet18", dynamic=((32, 32), (64, 128)))

    def get(*args: object, **more: object) -> Path:
        return find_bundle(*args, folder=tmp_path, **more)

    name = MANIFEST.model
    assert get(name, (64, 96)) == tuned
    assert get(name, (64, 96), runtime="tensorrt-rtx") == small
    assert get(name, (64, 96), 3) == large
    assert get(name, (64, 96), precision="fp32") == fp32
    assert get("mobilevos-resnet18", (32, 128)) == dynamic
    for args in ((name, (64, 112)), (name, (64, 96), 5), ("mobilevos-resnet18", (80, 96))):
        with pytest.raises(ModelError, match="python -m engine.build --fp16 --model"):
            get(*args)
    with pytest.raises(ModelError, match="--objects 8"):
        get(name, (64, 96), 5)
    (small / "manifest.json").write_text("broken")
    assert get(name, (64, 96)) == tuned
    with pytest.raises(ModelError, match="no bundle"):
        find_bundle(name, (64, 96), folder=tmp_path / "none")
