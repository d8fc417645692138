"""Checks before anything runs: params.yaml, the shipped weights, and a lock that a killed DVC has left."""

from __future__ import annotations

import fcntl
import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from lorarar.diffusion import hub
from stages.shared.context import Context
from stages.shared.entry_point import run

LOCKED = Path("requirements.lock")
TABLE = Path(".dvc/tmp/rwlock")
"""DVC's table of the processes that read and write outputs."""


def main(context: Context) -> None:
    """Check what `run` has not: the weights of a base that is only named must be on this machine."""
    base = context.data / "base"
    if (base / hub.NAME).exists():
        from lorarar.diffusion.backbone import check_files

        check_files(*hub.locate(base), hub.fetch_command(base))
    forget_killed(TABLE)
    if other := other_versions(LOCKED):
        print(f"note: not the versions of {LOCKED}, so figures may differ in their last digits: {', '.join(other)}")


def other_versions(lock: Path) -> list[str]:
    """Packages that are installed in another version than the lock file's."""
    other = []
    for name, expected in re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue  # an import will say so
        if found != expected:
            other.append(f"{name} {found} ({expected})")
    return other


def forget_killed(table: Path) -> None:
    """Remove DVC's table if no DVC is left of those in it: one that was killed while it wrote it stops all others."""
    try:
        guard = table.with_name("rwlock.lock").open("a")
    except FileNotFoundError:
        return  # DVC has never run here
    with guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # someone is just writing it
        try:
            content = json.loads(table.read_bytes())
            entries = [*content["write"].values(), *(entry for each in content["read"].values() for entry in each)]
            alive = any(_runs_dvc(entry["pid"]) for entry in entries)
        except FileNotFoundError:
            return
        except (ValueError, LookupError, TypeError, AttributeError):
            alive = False
        if not alive:
            table.unlink()


def _runs_dvc(pid: int) -> bool:
    """True if the process is still that DVC: process numbers are used again."""
    try:
        return any("dvc" in word for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


if __name__ == "__main__":
    run(main)
