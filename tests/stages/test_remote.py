"""Another clone gets all of artifacts/ by `make pull`, and has nothing left to run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from chain import ROOT, call, content, make, succeed


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


def make_target(folder: Path, name: str) -> tuple[int, str]:
    """Exit status and output of `make NAME` with the environment of these tests."""
    if not (folder / ".venv").exists():
        (folder / ".venv").symlink_to(sys.prefix)
    return call(folder, "make", "--no-print-directory", "-o", ".venv/installed-from-requirements.lock", name)


def target(folder: Path, name: str) -> str:
    status, said = make_target(folder, name)
    assert status == 0, said
    return said


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


@pytest.fixture(scope="module")
def second(first: Path) -> Path:
    """A clone next to the first, after `make push` there and `make pull` here."""
    assert "lorarar-storage" in target(first, "push")
    second = clone(first, first.parent / "second")
    assert not (second / "artifacts").exists() and (second / outputs(True)[0]).exists()
    target(second, "pull")
    return second


def test_a_clone_pulls_everything_and_runs_nothing(first: Path, second: Path) -> None:
    made = content(first, "artifacts/**/*")
    assert len(made) == len(outputs(False)) and content(second, "artifacts/**/*") == made
    assert content(second, "results/**/*") == content(first, "results/**/*")
    said = succeed(second, "dvc", "repro")
    assert "Running stage" not in said and "is cached" not in said and "up to date" in said
    runs = content(first / ".dvc/cache/runs", "*/*/*")
    assert runs and content(second / ".dvc/cache/runs", "*/*/*") == runs


def test_another_base_takes_nothing_away_and_needs_no_active_environment(second: Path) -> None:
    before = content(second, "artifacts/pocket/**/*") | content(second, "results/pocket/**/*")
    bare = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    command = [".venv/bin/dvc", "exp", "run", "-S", "base=pocket_light", "images"]
    done = subprocess.run(command, cwd=second, env={**bare, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((second / "artifacts/pocket_light/images/subjects/dog8").iterdir())) == 5
    call(second, "dvc", "checkout", "--recursive", ".")  # of `make pull`; most stages of this base have never run
    assert content(second, "artifacts/pocket/**/*") | content(second, "results/pocket/**/*") == before


def test_pull_from_a_storage_without_the_outputs_says_what_to_do(first: Path, tmp_path: Path) -> None:
    here = clone(first, tmp_path / "far" / "lorarar")
    status, said = make_target(here, "pull")
    assert status and "Traceback" not in said
    assert "error: the remote storage lacks what dvc.lock names: run make push in the clone that has it" in said


def test_the_lock_file_has_the_commands_of_the_chain() -> None:
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    other = [name for name, stage in lock.items() if name in stages and stage["cmd"] != stages[name]["cmd"]]
    assert not other, f"dvc.lock: another `cmd` than dvc.yaml's makes DVC run {', '.join(other)} again for nothing"
