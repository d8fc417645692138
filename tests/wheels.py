"""Installs the built wheels into empty environments and uses them there, away from the repository.

    python tests/wheels.py                 the core on every interpreter of this machine from 3.11 on
    python tests/wheels.py --extras        each extra too, on this interpreter

Each interpreter gets an environment in .venv-wheels, which is used again while the dependencies stay.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".venv-wheels"
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
NEEDED = 10e9
"""Bytes that must be free for one more environment."""
TESTS = ["test_adapter.py", "test_merge.py", "test_methods.py", "test_hypernet.py", "test_cli.py"]
"""Tests of the core; peft and diffusers are their references."""

USE = """
import torch
import lorarar
from lorarar import Adapter, inspect, merge, methods
from lorarar.lora.adapter import Factors

path = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
for seed, name in enumerate(["cat", "oil"]):
    torch.manual_seed(seed)
    Adapter({path: Factors(torch.randn(4, 640), torch.randn(640, 4))}).save(f"{name}.safetensors")
"""
TYPED = """
from lorarar import Adapter, inspect, merge, methods

cat = Adapter.load("cat.safetensors")
both = merge(cat, "oil.safetensors", method="nplora")
if isinstance(both, Adapter):
    both.save("both.safetensors")
reveal_type(merge)
names: list[str] = list(methods())
rank: int = inspect("both.safetensors").ranks[0]
"""
CHECK = """
import lorarar
from lorarar.lora.adapter import Adapter
cat, oil, both = (Adapter.load(f"{name}.safetensors").layers for name in ("cat", "oil", "both"))
for path in both:
    dense = cat[path].delta + oil[path].delta
    assert (both[path].delta - dense).norm() <= 1e-6 * dense.norm()
assert "site-packages" in lorarar.__file__, lorarar.__file__
"""


def main() -> None:
    """Parses the command line and tries every interpreter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", action="store_true", help="try each extra, on the interpreter that runs this")
    parser.add_argument("--tests", action="store_true", help="run the core's tests in each environment")
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION", help="such as 3.12")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        core, data = build(Path(folder)), build(Path(folder), "wheels/pocket")
        for version in given.versions:
            python = interpreter(version)
            if python is None:
                print(f"Python {version}: not on this machine")
            elif not (ENVIRONMENTS / version).exists() and shutil.disk_usage(ROOT).free < NEEDED:
                print(f"Python {version}: not tried, as PyTorch in one more environment needs {NEEDED / 1e9:.0f} GB")
            else:
                use_core(version, python, core, tests=given.tests)
        if given.extras:
            use_extras(core, data)


def build(folder: Path, project: str = ".") -> Path:
    """The wheel of a project, built from a copy so that nothing is left next to the sources."""
    source, out = folder / "source", folder / Path(project).name / "dist"
    shutil.rmtree(source, ignore_errors=True)
    ignored = shutil.ignore_patterns(".*", "artifacts", "results", "*.egg-info", "build")
    shutil.copytree(ROOT / project, source, symlinks=False, ignore=ignored)
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out, source)
    (wheel,) = out.glob("*.whl")
    return wheel


def interpreter(version: str) -> str | None:
    """Path of an interpreter, on PATH or as pyenv keeps it."""
    names = [sys.executable, shutil.which(f"python{version}")]
    names += sorted(map(str, (Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python")))
    for name in filter(None, names):
        asked = [name, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == version:
            return name
    return None


def use_core(version: str, python: str, wheel: Path, *, tests: bool) -> None:
    """Merge two files with the core, check types of a program that uses it, and run its tests."""
    own = environment(version, python)
    pip(own, "uninstall", "--yes", "peft", "diffusers")  # which the tests brought
    pip(own, "install", wheel)
    pip(own, "install", "--force-reinstall", "--no-deps", wheel)  # the version alone does not tell a new build
    listed, megabytes = size(own)
    print(f"Python {version}: core is {len(listed)} packages, {megabytes:.0f} MB, beyond torch: {' '.join(listed)}")
    with tempfile.TemporaryDirectory() as folder:
        run(own, "-c", USE, cwd=folder)
        run(
            own,
            "-m",
            "lorarar.cli",
            "merge",
            "cat.safetensors",
            "oil.safetensors",
            "-o",
            "both.safetensors",
            cwd=folder,
        )
        run(own, "-c", CHECK, cwd=folder)
        for method in ("ties", "dare_ties", "nplora", "svd"):
            words = ["cat.safetensors", "oil.safetensors", "-o", f"{method}.safetensors", "-m", method]
            run(own, "-m", "lorarar.cli", "merge", *words, cwd=folder)
        run(own, "-m", "lorarar.cli", "inspect", "both.safetensors", cwd=folder)
        refused = run(own, "-m", "lorarar.cli", "generate", "dog8", "glowing", "-o", "x", cwd=folder, status=2)
        assert "pip install 'lorarar[" in refused and "Traceback" not in refused, refused
        Path(folder, "typed.py").write_text(TYPED)
        checked = run(sys.executable, "-m", "mypy", "--strict", "--python-executable", own, "typed.py", cwd=folder)
        assert 'Revealed type is "def (' in checked, checked
    if tests:
        pip(own, "install", f"{wheel}[diffusion]", "pytest", "pytest-timeout", "hypothesis")
        with tempfile.TemporaryDirectory() as folder:  # the tests without the sources
            shutil.copytree(ROOT / "tests", Path(folder, "tests"))
            shutil.copy(ROOT / "pyproject.toml", folder)
            names = [f"tests/{name}" for name in TESTS if (ROOT / "tests" / name).exists()]
            print(run(own, "-m", "pytest", "-q", "-p", "no:cacheprovider", *names, cwd=folder).splitlines()[-1])


def use_extras(core: Path, data: Path) -> None:
    """Each extra does its job outside the repository."""
    version = "{}.{}".format(*sys.version_info)
    own = environment(f"{version}-extras", sys.executable)
    for extra in ("app", "study", "scoring", "server", "diffusion", "pocket", "benchmark"):
        pip(own, "install", f"{core}[{extra}]", "--find-links", data.parent)
        listed, megabytes = size(own, extra)
        print(f"with [{extra}]: {len(listed)} packages, {megabytes:.0f} MB")
        with tempfile.TemporaryDirectory() as folder:
            if extra == "pocket":
                words = ["generate", "dog8", "glowing", "-o", "out", "-n", "1", "--steps", "4", "-m", "direct"]
                run(own, "-m", "lorarar.cli", *words, cwd=folder)
                assert Path(folder, "out/overview.webp").exists()
                words = ["score", "out/direct", "--subject-refs", "out/direct", "--style-refs", "out/direct"]
                found = run(own, "-c", "from lorarar.shipped import root; print(root())", cwd=folder).strip()
                judges = Path(found, "data/pocket/judges")
                run(own, "-m", "lorarar.cli", *words, "--dino", judges / "dino", "--clip", judges / "clip", cwd=folder)
            else:
                module = {
                    "app": "lorarar.app.server",
                    "server": "openai",
                    "benchmark": "dvc.api",
                    "diffusion": "lorarar.diffusion.sampling",
                }
                run(own, "-c", f"import {module.get(extra, f'lorarar.{extra}')}", cwd=folder)


def environment(name: str, python: str) -> str:
    """Path of the interpreter of an empty environment, made if it is not there."""
    folder = ENVIRONMENTS / name
    own = folder / "bin/python"
    if not own.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    return str(own)


def pip(python: str, *words: str | Path) -> None:
    """Runs pip quietly."""
    run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", *words)


def run(python: str, *words: str | Path, cwd: str | Path = ROOT, status: int = 0) -> str:
    """Output of a command, which must end with a status; PYTHONPATH does not reach it."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([python, *words], cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    if done.returncode != status:
        sys.exit(f"{' '.join(map(str, words))[:200]}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def size(python: str, extra: str = "") -> tuple[list[str], float]:
    """Names of the packages that lorarar needs beyond torch and what torch needs, and their megabytes on the disk."""
    code = f"""
from importlib.metadata import distribution
from pip._vendor.packaging.requirements import Requirement

def needs(name, extras):
    found, left = set(), [(name, frozenset(extras))]
    while left:
        name, extras = one = left.pop()
        if one in found:
            continue
        found.add(one)
        for line in distribution(name).requires or ():
            wanted = Requirement(line)
            if not wanted.marker or any(wanted.marker.evaluate({{"extra": extra}}) for extra in extras or [""]):
                left.append((wanted.name.lower().replace("_", "-"), frozenset(wanted.extras)))
    return {{name for name, _ in found}}

for name in needs("lorarar", [{extra!r}]) - needs("torch", []):
    files = [file.locate() for file in distribution(name).files or ()]
    print(name, sum(file.stat().st_size for file in files if file.is_file()))
"""
    found = dict(line.split() for line in run(python, "-c", code).splitlines())
    return sorted(found), sum(map(int, found.values())) / 1e6


if __name__ == "__main__":
    main()
