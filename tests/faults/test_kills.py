"""A run that is killed at any moment, again and again, ends with the figures of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
from pathlib import Path

import pytest
from chain import call, content, environment, make, succeed

from slurm.task import RECORD, is_complete
from stages.shared.preflight import forget_killed

KILLS, SEED = 25, 20260101
pytestmark = pytest.mark.timeout(7200)
LEFTOVER = re.compile(r"\..*-\d+(\.\w+)?|\..*\.state|.*\.(tmp|part)|\.(?!task\.json$|jobs$|gitignore$|gitkeep$).*")
"""Names of what is not finished: hidden ones, except those that the chain keeps."""


def repro(folder: Path) -> subprocess.Popen[bytes]:
    """What `make repro` starts, as the head of a process group of its own."""
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            ["sh", "-c", "python -m stages.shared.preflight && dvc repro"],
            cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def kill(running: subprocess.Popen[bytes], after: float) -> bool:
    """Kill all of it after so many seconds; False if it had ended by then."""
    try:
        running.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        return True
    return False


def finished_tasks(folder: Path) -> dict[Path, int]:
    """When the record of each finished task was written, in nanoseconds."""
    return {path.parent: path.stat().st_mtime_ns for path in folder.glob(f".work/*/*/*/{RECORD}")}


def leftovers(folder: Path) -> list[str]:
    parts = (path for name in ("artifacts", "results", ".work") for path in (folder / name).rglob("*"))
    return [str(path.relative_to(folder)) for path in parts if LEFTOVER.fullmatch(path.name)]


def killed(folder: Path, kills: int, seconds: float, seed: int) -> None:
    """Kill the chain so many times, spread over its run, then let it end; all that was finished must stay finished."""
    chance, done, made = random.Random(seed), 0, {}
    while True:
        # A start takes some seconds before it comes to anything new.
        after = chance.uniform(1, 2 * (seconds / kills + START)) if done < kills else 3600
        running = repro(folder)
        done += kill(running, after)
        for task, written in made.items():
            assert finished_tasks(folder).get(task) == written, f"{task} was made twice"
        made = finished_tasks(folder)
        assert all(is_complete(task, checksums=True) for task in made), "half a task has a record"
        if running.returncode != -signal.SIGKILL:
            assert running.returncode == 0, (folder / "log").read_text()[-3000:]
            break
    print(f"{done} kills, {len(made)} tasks, none of them made twice")
    assert done >= kills // 2


START = 12.0
"""Seconds from the start of `dvc repro` to the first thing that a stage does, on a busy machine."""


@pytest.mark.slow
def test_killed_twenty_five_times(alone: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "killed")
    killed(folder, KILLS, float((alone / "seconds").read_text()), SEED)
    compare(folder, alone)


def compare(folder: Path, alone: Path) -> None:
    for pattern in ("results/pocket/**/*", "artifacts/pocket/**/*"):
        expected = content(alone, pattern)
        assert expected and content(folder, pattern) == expected
    assert leftovers(folder) == []
    assert "up to date" in succeed(folder, "dvc", "status")


def test_what_killed_processes_left_goes_and_the_chain_goes_on(tmp_path: Path) -> None:
    folder = make(tmp_path / "chain", ["truth"])
    images = subprocess.Popen(["python", "-m", "stages.images"], cwd=folder, env=environment(), start_new_session=True)
    kill(images, 3)
    metrics = folder / "results/pocket/metrics"
    metrics.mkdir(parents=True)
    (metrics / f".truth-test.{os.uname().nodename}-{images.pid}.json").write_text("{")
    # A DVC that was killed while it wrote its table stops all others.
    (folder / ".dvc/tmp").mkdir(exist_ok=True)
    (folder / ".dvc/tmp/rwlock").write_text('{"write": {"artifacts')
    (folder / ".dvc/tmp/rwlock.lock").touch()
    status, output = call(folder, "dvc", "repro", "images")
    assert status != 0 and "rwlock" in output, "DVC alone does not go on"
    succeed(folder, "python", "-m", "stages.shared.preflight")
    succeed(folder, "dvc", "repro", "images")
    assert len(list((folder / "artifacts/pocket/images").rglob("*.png"))) == 16 + 3
    assert leftovers(folder) == []


def entry(pid: int) -> str:
    return json.dumps({"write": {"artifacts": {"pid": pid, "cmd": "dvc repro"}}, "read": {}})


def test_dvc_is_forgotten_when_it_is_gone(tmp_path: Path) -> None:
    table = tmp_path / "rwlock"
    table.with_name("rwlock.lock").touch()
    other = subprocess.Popen(["sh", "-c", "echo; read line # dvc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin and other.stdout and other.stdout.readline()
    table.write_text(entry(other.pid))
    forget_killed(table)
    assert table.exists()
    other.communicate(b"\n")
    forget_killed(table)
    assert not table.exists()


@pytest.mark.parametrize(
    "content", ["", '{"write": {"art', "[]", entry(1)], ids=["empty", "half", "other", "new owner"]
)
def test_a_table_of_nobody_is_forgotten(tmp_path: Path, content: str) -> None:
    table = tmp_path / "rwlock"
    table.with_name("rwlock.lock").touch()
    table.write_text(content)
    forget_killed(table)
    assert not table.exists()
