"""A task, and the folder that it leaves: a record in it tells whether it is complete."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

RECORD = ".task.json"
"""In the folder of a finished task: sizes and checksums of its files, and what the work took."""


class Work(Protocol):
    """A frozen dataclass of an importable module: its fields are the arguments, `run` does the work.

    Fields are JSON values, paths, or such dataclasses themselves.
    """

    def run(self, folder: Path) -> None:
        """Write results into `folder`, which is kept if this returns."""


@dataclass(frozen=True)
class Task:
    """A piece of work with a name.

    Parameters
    ----------
    name : for people.
    work : runs in another process, where it arrives as a pickle.
    reads : files and folders that it reads.
    folder : appears when it is done; `slurm.store` names it.
    inputs : checksum of `reads`.
    """

    name: str
    work: Work
    reads: Sequence[Path | str] = ()
    folder: Path = Path()
    inputs: str = ""

    def __post_init__(self) -> None:
        if type(self.work).__module__ == "__main__":
            raise TypeError(f"{type(self.work).__qualname__} is of a script; import its module, as other processes do")

    @property
    def key(self) -> str:
        return self.folder.name


class TaskError(Exception):
    """A task failed. The message is one line that names it; `__cause__` is what the task raised, if that is known."""


class Changed(Exception):
    """The inputs of a task changed after it had been planned."""


def one_line(error: BaseException) -> str:
    """The first line of what went wrong."""
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__


def paths_sha256(paths: Iterable[Path | str]) -> str:
    """SHA-256 over the names and contents of files, and of all files below folders."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        for file in sorted(below for below in path.rglob("*") if below.is_file()) if path.is_dir() else [path]:
            if "__pycache__" not in file.parts:
                digest.update(f"{file.as_posix()}\0{_sha256(file)}\n".encode())
    return digest.hexdigest()


def state(folder: Path) -> Path:
    """File for the state of a task that fills `folder`: it outlives an attempt, and goes when the task is done."""
    return folder.with_name(f".{folder.name.strip('.').split('.')[0]}.state")


def perform(task: Task, asked: dict[str, Any] | None = None) -> None:
    """Do a task that is not done yet: let it fill a hidden folder, which gets its name when complete.

    Parameters
    ----------
    asked : the resources of the job it runs in, for the record.

    Raises
    ------
    Changed : an input was edited after the task had been named by it.
    """
    if is_complete(task.folder):
        return
    if paths_sha256(task.reads) != task.inputs:
        raise Changed("its inputs have changed since it was planned; run the stage again")
    hidden = task.folder.with_name(f".{task.key}.{socket.gethostname()}-{os.getpid()}")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    seconds, cpu_seconds = time.time(), time.process_time()
    try:
        task.work.run(hidden)
        record = {
            "name": task.name,
            "seconds": round(time.time() - seconds, 3),
            "cpu_seconds": round(time.process_time() - cpu_seconds, 3),
            "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10),
            "host": socket.gethostname(),
            "asked": asked,
        }
        _seal(hidden, record)
        try:
            hidden.rename(task.folder)
        except OSError:
            if not is_complete(task.folder):  # else a second attempt, thought dead, was faster
                raise
        state(task.folder).unlink(missing_ok=True)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def is_complete(folder: Path, checksums: bool = False) -> bool:
    """Whether a folder holds just the files its record lists, by their sizes or by their checksums too."""
    files = read_record(folder).get("files")
    if files is None or files.keys() != set(_files(folder)):
        return False
    return all(
        (folder / name).stat().st_size == size and (not checksums or _sha256(folder / name) == checksum)
        for name, (size, checksum) in files.items()
    )


def read_record(folder: Path) -> dict[str, Any]:
    """What the work on a finished task took; empty if the folder has no record."""
    return read_json(folder / RECORD)


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file; empty if there is none."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def names(folder: Path) -> set[str]:
    """What a folder holds, however much that is; hidden names do not count. Empty if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.name.startswith(".")}
    except FileNotFoundError:
        return set()


def _seal(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a folder, and have all of it on the disk before anyone can see it."""
    files = {}
    for name in _files(folder):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        files[name] = [(folder / name).stat().st_size, _sha256(folder / name)]
    write_json(folder / RECORD, {"files": files, **record})


def _files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != RECORD]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
