"""Another clone gets all of artifacts/ by `make pull`, and has nothing left to run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from chain import ROOT, content, make, succeed


def outputs(kept_by_git: bool) -> list[str]:
    """Paths that the stages of base pocket write, without the frozen stage's."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    found = []
    for stage in stages.values():
        for entry in (entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])):
            path, options = entry.popitem() if isinstance(entry, dict) else (entry, {})
            if not stage.get("frozen") and kept_by_git is (options.get("cache") is False):
                found.append(path.replace("${base}", "pocket"))
    return found


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def target(folder: Path, name: str) -> str:
    """Output of `make NAME` with the environment of these tests."""
    if not (folder / ".venv").exists():
        (folder / ".venv").symlink_to(sys.prefix)
    return succeed(folder, "make", "--no-print-directory", "-o", ".venv/installed-from-requirements.lock", name)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose stages have all run, as DVC believes: their outputs are short files."""
    folder = make(tmp_path_factory.mktemp("first") / "lorarar")
    shutil.copy(ROOT / "Makefile", folder)
    for path in (*outputs(True), *outputs(False)):
        # What has no suffix is a folder.
        file = folder / (path if Path(path).suffix else f"{path}/file.txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{path}\n")
    succeed(folder, "dvc", "commit", "--force")
    git(folder, "add", "--all")
    git(folder, "commit", "--message", "results")
    return folder


def clone(first: Path, folder: Path) -> Path:
    git(first, "clone", str(first), str(folder))
    return folder


def test_a_clone_next_to_the_first_pulls_everything_and_runs_nothing(first: Path) -> None:
    said = target(first, "push")
    assert "lorarar-storage" in said
    second = clone(first, first.parent / "second")
    assert not (second / "artifacts").exists() and (second / outputs(True)[0]).exists()
    target(second, "pull")
    made = content(first, "artifacts/**/*")
    assert len(made) == len(outputs(False)) and content(second, "artifacts/**/*") == made
    assert content(second, "results/**/*") == content(first, "results/**/*")
    said = succeed(second, "dvc", "repro")
    assert "Running stage" not in said and "is cached" not in said and "up to date" in said
    runs = content(first / ".dvc/cache/runs", "*/*/*")
    assert runs and content(second / ".dvc/cache/runs", "*/*/*") == runs
