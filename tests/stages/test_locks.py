"""Locks that a DVC killed with SIGKILL leaves: those that stop the next one are removed, those in use stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc.lock import LockError, make_lock

from lorarar.errors import UserError
from stages.shared import preflight

HOLD = """
import sys, time
from dvc.lock import make_lock
lock = make_lock(sys.argv[1], tmp_dir=".dvc/tmp", hardlink_lock=sys.argv[2] == "True")
lock.lock()
print("held", flush=True)
time.sleep(100)
"""
Holder = Callable[[Path, bool], subprocess.Popen[str]]


@pytest.fixture(params=preflight.LOCKS, ids=lambda lock: lock.name)
def lock(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of an empty repository in a folder whose name has a space and `dvc`."""
    folder = tmp_path / "my dvc project"
    (folder / ".dvc/tmp").mkdir(parents=True)
    monkeypatch.chdir(folder)
    subprocess.run(["git", "init", "--quiet"], check=True)
    return request.param


@pytest.fixture
def hold() -> Iterator[Holder]:
    """Starts a process that holds a lock by DVC's own classes."""
    started = []

    def start(lock: Path, hardlink: bool) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", HOLD, str(lock), str(hardlink)]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout and started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def configure(hardlink: bool) -> None:
    Path(".dvc/config").write_text(f"[core]\n    hardlink_lock = {str(hardlink).lower()}\n")


def free(lock: Path, hardlink: bool) -> bool:
    """True if DVC gets the lock, which it gives back."""
    try:
        with make_lock(str(lock), tmp_dir=".dvc/tmp", hardlink_lock=hardlink):
            return True
    except LockError:
        return False


@pytest.mark.parametrize(("before", "now"), [(True, True), (False, True), (False, False), (True, False)])
def test_a_lock_whose_process_was_killed_is_gone(lock: Path, hold: Holder, before: bool, now: bool) -> None:
    process = hold(lock, before)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert free(lock, now) == (not now), "the kernel frees its own kind; a file stays"
    configure(now)
    preflight.forget_lock(lock)
    assert free(lock, now)


@pytest.mark.parametrize("hardlink", [True, False])
def test_a_lock_in_use_stays(lock: Path, hold: Holder, hardlink: bool) -> None:
    hold(lock, hardlink)
    configure(hardlink)
    preflight.forget_lock(lock)
    assert lock.exists() and not free(lock, hardlink)


def test_a_lock_of_the_kernel_that_is_held_stays_after_a_change_of_the_setting(lock: Path, hold: Holder) -> None:
    hold(lock, False)
    configure(True)
    preflight.forget_lock(lock)
    assert lock.exists() and not free(lock, False)


def test_on_a_shared_disk_the_user_decides(lock: Path, hold: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    process = hold(lock, True)
    process.kill()
    process.wait()
    configure(True)
    monkeypatch.setattr(preflight, "_file_system", lambda _: "nfs4")
    with pytest.raises(UserError) as caught:
        preflight.forget_lock(lock)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{lock}: DVC's lock since 20") and f"`rm {lock}`" in line and "hardlink_lock" in line
    lock.unlink()
    assert free(lock, True), "the advice helps"
