"""Checks before anything runs: params.yaml, the shipped weights, and locks that a killed DVC has left."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from lorarar.diffusion import hub
from lorarar.errors import UserError
from stages.shared.context import Context
from stages.shared.entry_point import run

LOCKED = Path("requirements.lock")
TABLE = Path(".dvc/tmp/rwlock")
"""DVC's table of the processes that read and write outputs."""

LOCKS = (Path(".dvc/tmp/lock"), Path(".dvc/tmp/rwlock.lock"))
"""DVC's locks of the repository and of the table."""

SHARED_DISKS = re.compile(
    r"nfs|lustre|gpfs|mmfs|beegfs|ceph|cifs|smb|afs|orangefs|glusterfs|fuse|9p|virtiofs|panfs|wekafs"
)
"""Types of file systems on which processes of other machines may hold a lock."""


def main(context: Context) -> None:
    """Check what `run` has not: the weights of a base that is only named must be on this machine."""
    base = context.data / "base"
    if (base / hub.NAME).exists():
        from lorarar.diffusion.backbone import check_files

        check_files(*hub.locate(base), hub.fetch_command(base))
    for lock in LOCKS:
        forget_lock(lock)
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


def forget_lock(lock: Path) -> None:
    """Remove a lock file that stops DVC though no process holds it.

    With `core.hardlink_lock` the file itself is the lock: a killed DVC leaves it, and so does one that ran before the
    setting was made. Without the setting, the kernel frees the lock of a killed process, whatever file is left.

    Raises
    ------
    UserError : the disk is shared, and another machine may hold the lock.
    """
    from dvc.config import Config

    if not lock.exists() or not Config(str(lock.parents[1])).get("core", {}).get("hardlink_lock", False):
        return
    if not lock.read_text(errors="replace").endswith(".lock"):  # not by the name of a claim: of the kernel's kind
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            lock.unlink()
    elif not _dvc_works_in(Path.cwd()):
        disk = _file_system(lock)
        if SHARED_DISKS.search(disk):
            since = time.strftime("%F %T", time.localtime(lock.stat().st_mtime - timedelta(days=365).total_seconds()))
            raise UserError(
                f"{lock}: DVC's lock since {since}, by no process here; if DVC runs on no other machine, `rm {lock}`; "
                f"`dvc config --unset core.hardlink_lock` avoids such locks if the disk ({disk}) has flock"
            )
        lock.unlink()
    else:
        return
    print(f"note: {lock}: removed, as no DVC holds this lock")


def _dvc_works_in(folder: Path) -> bool:
    """True if another process that is DVC, or uses it, may work in a folder."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        try:
            words = [word.replace(str(folder), "") for word in process.cmdline()]
        except psutil.Error:
            continue
        if process.pid in own or not any("dvc" in word for word in words):
            continue
        try:
            place = Path(process.cwd())
        except psutil.AccessDenied:
            return True  # a DVC of someone else, in a folder that is not known
        except psutil.Error:
            continue
        if place.is_relative_to(folder):
            return True
    return False


def _file_system(path: Path) -> str:
    """Type of the file system of a path, such as ext4."""
    path = path.resolve()
    disks = [disk for disk in psutil.disk_partitions(all=True) if path.is_relative_to(disk.mountpoint)]
    return max(disks, key=lambda disk: len(disk.mountpoint)).fstype if disks else "unknown"


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
