"""Which Python `make` takes, and what it says and asks of pip."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("make", "sh", "cmp", "cp", "cut", "du", "echo", "grep", "mkdir", "sleep", "touch")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the Makefile, and no Python on its path yet."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    for name in TOOLS:
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    return tmp_path


def add_python(clone: Path, version: str, *, broken: bool = False) -> None:
    """Put a Python on the path that says it is of this version; its environments note what pip is asked for."""
    code = f"import sys; sys.version_info = {tuple(map(int, version.split('.')))}"
    path = clone / "bin" / f"python{version}"
    path.write_text(
        f"""#!/bin/sh
[ "$1" = -c ] && exec {sys.executable} -c "{code}; {"sys.exit(1)" if broken else "$2"}"
[ "$1" = --version ] && exec echo Python {version}.0
[ "$2" = venv ] && mkdir -p .venv/bin && exec cp "$0" .venv/bin/python
echo "$@" >> asked
"""
    )
    path.chmod(0o755)


def make(clone: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        ["make", "--no-print-directory", *words], cwd=clone, env={"PATH": f"{clone}/bin"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_the_newest_python_that_works_is_taken_and_told(clone: Path) -> None:
    for version in ("3.10", "3.11", "3.12"):
        add_python(clone, version)
    add_python(clone, "3.13", broken=True)  # such as Debian's without python3-venv, or a shim of pyenv
    assert "(now python3.12)" in make(clone, "help")[1]
    status, said = make(clone, "setup")
    assert status == 0, said
    packages = sum("==" in line for line in (clone / "requirements.lock").read_text().splitlines())
    assert f"Python 3.12.0: {packages} packages, 3.4 GB to download" in said and "Environment ready." in said
    locked, own = (clone / "asked").read_text().splitlines()
    assert locked.startswith("-m pip install ") and locked.endswith("--no-deps --require-hashes -r requirements.lock")
    assert "--quiet" not in locked and own.endswith("--no-deps --quiet --no-build-isolation -e .")
    assert (clone / ".venv/installed-from-requirements.lock").exists()


def test_another_python_is_named_by_python(clone: Path) -> None:
    for version in ("3.11", "3.12", "3.13"):
        add_python(clone, version)
    assert make(clone, "setup", "PYTHON=python3.12")[0] == 0
    status, said = make(clone, "setup", "PYTHON=python3.11")
    assert status and "error: .venv has another Python than python3.11: remove it first (rm -r .venv)" in said
    assert make(clone, "setup")[0] == 0  # what is there stays


def test_a_mistake_is_one_line(clone: Path) -> None:
    add_python(clone, "3.10")
    for words, expected in (
        ([], "error: no Python of 3.13 3.12 3.11 3.14 with venv was found: install one"),
        (["PYTHON=python3.9"], "error: python3.9 not found: install it, or name another with make PYTHON=..."),
        (["PYTHON=python3.10"], "error: requirements.lock is for Python 3.13 3.12 3.11 3.14, python3.10 is 3.10"),
    ):
        status, said = make(clone, "setup", *words)
        assert status and expected in said and "Traceback" not in said and said.count("error: ") == 1, said
        assert not (clone / ".venv").exists()
