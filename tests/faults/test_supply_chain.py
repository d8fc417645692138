"""What `make` installs is pinned to the byte, and its licences are listed."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def requirements() -> dict[str, str]:
    """Each package of the lock file with the rest of its entry."""
    entries = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)[1:]
    return {entry.partition("==")[0]: entry for entry in entries}


def test_every_package_has_one_version_and_the_checksums_of_its_files() -> None:
    assert len(requirements()) > 150 and LOCK.count("==") == len(requirements())
    for name, entry in requirements().items():
        assert re.fullmatch(r"[\w.-]+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+\n", entry), name


def test_pip_is_told_to_look_at_them() -> None:
    lines = (ROOT / "Makefile").read_text().splitlines()
    own, *installs = [line for line in lines if "pip install" in line or "$(PIP)" in line]
    assert own.startswith("PIP = ") and own.endswith("--no-deps")
    assert len(installs) == 3
    assert "$(PIP) --require-hashes -r requirements.lock" in installs[0]
    assert "$(PIP) --quiet --no-build-isolation -e ." in installs[1], "nothing but this repository"
    assert "--no-deps --require-hashes -r $<" in installs[2], "of docs/requirements.txt"


def test_every_package_has_a_licence_in_the_list() -> None:
    rows = re.findall(
        r"^\| ([\w.-]+) \| (.+) \|$", (ROOT / "docs/licences.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert {name for name, _ in rows} >= requirements().keys(), "run `.venv/bin/python docs/licences.py`"


def test_nothing_of_the_library_needs_a_package_that_is_copyleft_alone() -> None:
    """Tests may: they are not installed with it."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "lorarar").rglob("*.py"))
    assert not re.search(r"^\s*(import|from) (krippendorff|grandalf|pygit2|dvc)\b", sources, re.MULTILINE)
