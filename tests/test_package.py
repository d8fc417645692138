"""The wheel: what is in it, and the command that it installs, away from the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lorarar.lora.adapter import Adapter

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked."""
    return build(tmp_path_factory.mktemp("package"))


def build(folder: Path, urls: str = "") -> Path:
    """The wheel of this checkout, unpacked; `urls` is a table for its pyproject.toml."""
    source = folder / "source"
    source.mkdir()
    # Built elsewhere, so that nothing is left next to the sources.
    for name in ("setup.py", "README.md", "LICENSE", "NOTICE", "lorarar"):
        (source / name).symlink_to(ROOT / name)
    (source / "pyproject.toml").write_text(
        (ROOT / "pyproject.toml").read_text(encoding="utf-8") + urls, encoding="utf-8"
    )
    command = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([sys.executable, *command, "--wheel-dir", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.stat().st_size < 1e6, "weights stay in the repository"
    zipfile.ZipFile(wheel).extractall(folder / "unpacked")
    return folder / "unpacked"


def call(package: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`lorarar` of the wheel, in a folder that is not the repository."""
    return subprocess.run(
        [sys.executable, "-m", "lorarar.cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(package)},
        text=True,
        capture_output=True,
        check=False,
    )


def test_the_library_is_in_it_and_nothing_else(package: Path) -> None:
    found = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lorarar").rglob("*.py")}
    pages = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("lorarar/*/pages/*")}
    data = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("lorarar/lora/bases/*.json")}
    assert "lorarar/report/pages/report.html" in pages and "lorarar/lora/bases/sdxl.json" in data
    assert code | pages | data <= found
    assert {name.partition("/")[0].partition("-")[0] for name in found} == {"lorarar"}
    (entry,) = package.glob("*.dist-info/entry_points.txt")
    assert "lorarar = lorarar.cli:main" in entry.read_text()


def test_links_of_the_description_lead_somewhere_or_are_words(package: Path, tmp_path: Path) -> None:
    def described(package: Path) -> tuple[str, list[str]]:
        (metadata,) = package.glob("*.dist-info/METADATA")
        headers, _, text = metadata.read_text(encoding="utf-8").partition("\n\n")
        assert "Description-Content-Type: text/markdown" in headers
        return text, re.findall(r"\]\(([^)]+)\)", text)

    text, links = described(package)
    assert "[usage]" not in text and "- usage: merge, generate" in text
    assert links and all(link.startswith("https://") for link in links)
    text, links = described(build(tmp_path, '\n[project.urls]\nRepository = "https://example.org/us/lorarar/"\n'))
    assert all(link.startswith("https://") for link in links) and len(links) > 15
    assert "[usage](https://example.org/us/lorarar/blob/HEAD/docs/usage.md)" in text
    assert "](https://example.org/us/lorarar/raw/HEAD/results/pocket/figures/overview-test.webp)" in text


def test_merging_needs_nothing_of_the_repository(package: Path, tmp_path: Path, adapters) -> None:
    names = ["cat.safetensors", "oil.safetensors"]
    for adapter, name in zip(adapters, names, strict=True):
        adapter.save(tmp_path / name)
    done = call(package, tmp_path, "merge", *names, "-o", "both.safetensors", "-m", "direct")
    assert done.returncode == 0, done.stderr
    assert set(Adapter.load(tmp_path / "both.safetensors").ranks.values()) == {6}
    where = [sys.executable, "-c", "import lorarar; print(lorarar.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(package)}, capture_output=True)
    assert Path(found.stdout.decode().strip()).is_relative_to(package)


@pytest.mark.parametrize("first", ["lorarar", "lorarar.merging", "lorarar.merging.columns", "lorarar.api"])
def test_the_public_names_work_in_every_order_of_imports(first: str) -> None:
    code = f"""
import sys, inspect, lorarar
assert "torch" not in sys.modules
import {first}
from lorarar import Adapter, merge
from lorarar import api
from lorarar.merging import columns
import lorarar.merging.columns as again
assert columns is again and Adapter is api.Adapter and callable(merge) and lorarar.merge is merge
assert inspect.signature(lorarar.merge) == inspect.signature(api.merge)
try:
    lorarar.merge("nowhere", "nowhere", method="direct")
except lorarar.errors.UserError as error:
    assert "nowhere: no such file" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
