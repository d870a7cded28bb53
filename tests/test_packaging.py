"""The package: what it needs, what it brings, and that optional really means optional."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import engine
from engine.data.demo import CLIP, MASK
from engine.weights import FOLDER, SUMS, available, graph_path, weights_path

OPTIONAL = ("torch", "triton", "cv2", "matplotlib", "safetensors", "onnx", "h5py", "vos_benchmark")

# What is optional cannot be imported in the process that runs this.
WITHOUT = f"""
import sys
blocked = {OPTIONAL!r}
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *args):
        return None if name.split(".")[0] in blocked else self.finder.find_spec(name, *args)
sys.meta_path[:] = map(Hiding, sys.meta_path)
import atexit
@atexit.register
def check():
    loaded = sorted(set(sys.modules) & set(blocked))
    if loaded:
        print("imported:", *loaded, file=sys.stderr, flush=True)
        import os; os._exit(99)
"""


def run_without(code: str) -> str:
    """Run code in a process that lacks all that is optional; returns its output."""
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT + code], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def project() -> dict:
    """The metadata of pyproject.toml."""
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_importing_the_engine_is_light():
    out = run_without("""
import engine
print(engine.__version__)
assert not {"numpy", "onnxruntime", "PIL", "av"} & set(sys.modules)
from engine import Segmenter
print(Segmenter.__name__)
""")
    assert out.split() == [engine.__version__, "Segmenter"]


def test_the_test_of_imports_can_fail():
    code = WITHOUT.replace("return None if", "return None if False and")
    run = subprocess.run(
        [sys.executable, "-c", code + "import safetensors"], cwd=ROOT, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 99 and "imported: safetensors" in run.stderr


def test_two_frames_on_the_cpu_backend():
    out = run_without("""
import numpy as np
from engine import Segmenter
frames = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
mask = np.zeros((48, 64), np.uint8)
mask[10:30, 10:40] = 5
with Segmenter.load(backend="auto", threads=1) as segmenter:
    first = segmenter.start(frames[0], mask)
    second = segmenter.step(frames[1])
print(segmenter.backend, (first == mask).all(), second.shape, set(np.unique(second)) <= {0, 5})
""")
    assert out.split("\n")[0] == "cpu True (48, 64) True"


def test_the_info_command():
    out = run_without("""
from engine.cli import main
raise SystemExit(main(["info"]))
""")
    assert re.search(r"cpu +yes", out)
    assert re.search(r"reference +no: torch and safetensors not installed; run: pip install", out)
    assert f"mobilevos-engine {engine.__version__}" in out


@pytest.mark.parametrize(("code", "extra"), [
    ("Segmenter.load(backend='reference')", "reference"),
    ("raise SystemExit(train(['--davis', '.', '--stills', '.']))", "train"),
    ("raise SystemExit(curves(['log.jsonl']))", "train"),
])  # fmt: skip
def test_what_is_missing_is_named_with_its_extra(code, extra):
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT + f"""
from engine import Segmenter
from engine.errors import MissingExtraError
from engine.train.__main__ import main as train
from engine.train.plot import main as curves
try:
    {code}
except MissingExtraError as error:
    print("error:", error, file=sys.stderr)
    raise SystemExit(2)
"""], cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.endswith(f"run: pip install '.[{extra}]'")


def closure(requirements: list[str]) -> set[str]:
    """Names of all distributions that the requirements bring, as installed here."""
    found: set[str] = set()
    done: set[tuple[str, ...]] = set()
    waiting = [Requirement(r) for r in requirements]
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), requirement.extras or {""}
        if (name, *sorted(extras)) in done:
            continue
        done.add((name, *sorted(extras)))
        found.add(name)
        for more in map(Requirement, importlib.metadata.requires(name) or []):
            if more.marker is None or any(more.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(more)
    return found


def test_the_base_install_does_not_bring_torch():
    base = closure(project()["dependencies"])
    assert {"numpy", "onnxruntime", "av", "pillow", "tqdm"} <= base
    assert not base & {"torch", "triton", "safetensors", "onnx", "opencv-python-headless"}
    assert not any(name.startswith("nvidia") for name in base)


def test_the_closure_finds_what_is_deep():
    """The test above would see torch behind another package."""
    assert {"torch", "sympy", "mpmath"} <= closure(["torch"])


def test_the_floors_are_those_of_the_dependencies():
    pins = [Requirement(x) for x in (ROOT / ".ci" / "floors.txt").read_text().splitlines()[1:]]
    floors = {pin.name: str(pin.specifier).removeprefix("==") for pin in pins}
    wanted = {r.name: r for r in map(Requirement, project()["dependencies"])}
    assert floors.keys() == wanted.keys()
    for name, requirement in wanted.items():
        (bound,) = requirement.specifier
        assert bound.operator == ">=" and Version(bound.version) == Version(floors[name])


def test_extras_that_messages_name_exist():
    extras = set(project()["optional-dependencies"])
    assert extras >= {"reference", "build", "train", "eval", "prompt", "dev"}
    named = set()
    for path in [*ROOT.glob("engine/**/*.py"), *ROOT.glob("kernels/**/*.py"), ROOT / "README.md"]:
        text = path.read_text()
        named |= set(re.findall(r"\.\[([a-z,]+)\]", text))
        named |= set(re.findall(r"pip_install\(['\"](\w+)", text))
        named |= set(re.findall(r"MissingExtraError\(.*?\"(\w+)\"\)", text))
    named = {extra for group in named for extra in group.split(",")}
    assert {"reference", "train", "eval", "prompt"} <= named <= extras


def test_every_extra_brings_what_its_code_imports():
    """Top-level imports of the package, by the extra that is to bring them."""
    extras = project()["optional-dependencies"]

    def names(extra: str) -> set[str]:
        found = set()
        for requirement in map(Requirement, extras[extra]):
            if requirement.name == "mobilevos-engine":
                for inner in requirement.extras:
                    found |= names(inner)
            else:
                found.add(requirement.name)
        return found

    # The trainer also augments with OpenCV.
    assert {"torch", "safetensors", "matplotlib", "h5py", "opencv-python-headless"} <= names(
        "train"
    )
    assert {"torch", "safetensors"} <= names("reference")
    assert {"torch", "safetensors", "onnx", "onnxscript"} <= names("build")
    everything = set().union(*(names(e) for e in extras if e != "dev"))
    assert everything <= names("dev")


def test_the_shipped_weights_have_their_hashes():
    """Whoever changes a file must write the list anew; python -m engine.export does so."""
    told = dict(reversed(line.split()) for line in (FOLDER / SUMS).read_text().splitlines())
    found = [*FOLDER.glob("*.safetensors"), *FOLDER.glob("*.onnx")]
    assert told == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def test_another_package_named_kernels_is_told(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import engine"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "another package named 'kernels'" in run.stderr and "python -m venv" in run.stderr


@pytest.mark.slow
def test_the_wheel_has_all_that_runs(tmp_path):
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*pip, "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"mobilevos_engine-{engine.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        sizes = {i.filename: i.file_size for i in archive.infolist()}
    tracked = subprocess.run(
        ["git", "ls-files", "engine", "kernels"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    ).stdout.split()  # fmt: skip
    assert set(tracked) <= names, "every file of the two packages"
    needed = [CLIP, MASK, *(p(m) for m in available() for p in (weights_path, graph_path))]
    for path in needed:
        assert sizes[str(path.relative_to(ROOT))] == path.stat().st_size
    assert not [n for n in names if n.startswith(("tests/", "build/", ".")) or "__pycache__" in n]
    (licence,) = (n for n in names if n.endswith("LICENSE"))
    assert licence.startswith("mobilevos_engine-")
    (entry,) = (n for n in names if n.endswith("entry_points.txt"))
    with zipfile.ZipFile(wheel) as archive:
        assert "mobilevos = engine.cli:main" in archive.read(entry).decode()


def test_pins_cover_every_direct_dependency():
    """The tests install with exact versions of all that pyproject.toml names."""
    metadata = project()
    groups = [metadata["dependencies"], *metadata["optional-dependencies"].values()]
    direct = {canonicalize_name(Requirement(r).name) for group in groups for r in group}
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), line
            pins[canonicalize_name(pin.name)] = pin
    missing = direct - {"mobilevos-engine"} - pins.keys()
    assert not missing
    for group in groups:
        for requirement in map(Requirement, group):
            if requirement.name != "mobilevos-engine":
                (pin,) = pins[canonicalize_name(requirement.name)].specifier
                assert pin.version in requirement.specifier, f"{requirement} and its pin disagree"


def test_readme_commands_are_found(tmp_path):
    script = ROOT / ".ci" / "readme_command.py"
    readme = tmp_path / "README.md"
    readme.write_text(
        "<!-- command: demo -->\n```sh\none && \\\n  two\n```\n\n```sh\nnot this\n```\n\n"
        "<!-- command: test -->\n```bash\nthree\n```\n\n<!-- command: bare -->\ntext\n```\nx\n```\n"
    )

    def ask(name):
        return subprocess.run(
            [sys.executable, script, name, readme], capture_output=True, text=True, check=False
        )

    assert ask("demo").stdout == "one && \\\n  two\n"
    assert ask("test").stdout == "three\n"
    for name in ("bare", "other"):
        run = ask(name)
        assert run.returncode == 2 and len(run.stderr.splitlines()) == 1 and not run.stdout
    assert "command: other" in run.stderr
