"""What the page on sharing promises: its commands, one cache for two clones, and two runs at once."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
from chain import ROOT, content, environment, make
from test_tutorials import blocks, commands, run

PAGE = ROOT / "docs/sharing.md"


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], cwd=folder, check=True)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which nothing has run, next to the group's folder."""
    folder = make(tmp_path_factory.mktemp("clones") / "first")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "settings")
    (folder.parent / "group/cache").mkdir(parents=True)
    return folder


def shown() -> list[re.Match[str]]:
    """Blocks of the page whose commands need only what is here; the last wants a stage that another clone has run."""
    return [block for block in blocks(PAGE) if not block["reason"]]


def start(clone: Path) -> subprocess.Popen[str]:
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(["dvc", "repro", "images"], cwd=clone, env=environment(), **out)


def test_clones_of_a_group_share_one_cache_also_at_the_same_time(first: Path) -> None:
    second, third = first.parent / "second", first.parent / "third"
    for clone in (second, third):
        git(first.parent, "clone", "--quiet", str(first), str(clone))
    for clone in (first, second, third):
        for command in (command for block in shown()[:-1] for command in commands(block)):
            run(command, clone)
    running = [start(first), start(second)]
    for process in running:
        said, _ = process.communicate()
        assert process.returncode == 0, said
    made = content(first, "artifacts/pocket/images/**/*")
    assert made and content(second, "artifacts/pocket/images/**/*") == made
    for command in commands(shown()[-1]):
        run(command, third)
    assert content(third, "artifacts/pocket/images/**/*") == made
    assert not (third / ".dvc/cache").exists()
    cache = first.parent / "group/cache"
    for folder, _, names in os.walk(cache / "files"):
        assert Path(folder).stat().st_mode & stat.S_IWGRP, folder
        assert not any((Path(folder) / name).stat().st_mode & stat.S_IWUSR for name in names)


def test_a_second_run_in_one_clone_ends_and_says_so(first: Path) -> None:
    (first / ".dvc/tmp").mkdir(exist_ok=True)
    with open(first / ".dvc/tmp/lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        running = start(first)
        said, _ = running.communicate()
    assert running.returncode and "Traceback" not in said and "Unable to acquire lock" in said, said
