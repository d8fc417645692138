"""Tasks, and the folders of finished tasks, which list their files with checksums."""

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
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

WORK = Path(os.environ.get("LORARAR_WORK", ".work"))
"""Finished tasks and unfinished files. Runs in several folders can share it: keys are contents and relative paths."""

RECORD = ".task.json"
"""File in the folder of a finished task: sizes and checksums of its files, and the time and memory that it took."""


class Work(Protocol):
    """A frozen dataclass that does one piece of work and holds its arguments.

    It stands at the top level of a module, from which worker processes and jobs import it. Its fields are text, paths,
    numbers, booleans, None, and lists, dictionaries and dataclasses of these.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def run(self, folder: Path) -> None:
        """Write into `folder`, which is kept if this returns."""


@dataclass(frozen=True)
class Task:
    """A piece of work with a name.

    Parameters
    ----------
    name : shown to people.
    work : does the task.
    reads : files and folders that the work reads.
    folder : appears when the task is done; `slurm.store` names it.
    inputs : `paths_sha256` of `reads`.

    Raises
    ------
    TypeError : other processes cannot import the class of the work.
    """

    name: str
    work: Work
    reads: Sequence[Path | str] = ()
    folder: Path = Path()
    inputs: str = ""

    def __post_init__(self) -> None:
        kind = type(self.work)
        if kind.__module__ == "__main__":
            raise TypeError(
                f"{self.name}: {kind.__qualname__} is a class of the running script (__main__), which other processes "
                "cannot import; import it from its module"
            )

    @property
    def key(self) -> str:
        return self.folder.name


class TaskError(Exception):
    """A task failed. The message is one line that names it; `__cause__` is the error of the task, if that is known."""


class Changed(Exception):
    """A file that a task reads has changed since the task was planned."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or else its type."""
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
    """File for the state of the task that fills `folder`. It outlives attempts and goes when the task is done."""
    return folder.with_name(f".{folder.name.strip('.').split('.')[0]}.state")


def perform(task: Task, asked: dict[str, Any] | None = None) -> None:
    """Do a task that is not done yet. The work fills a hidden folder, which gets its name when it is complete.

    Parameters
    ----------
    asked : resources of the job that runs the task, for the record.

    Raises
    ------
    Changed : an input was edited after the task had been planned.
    """
    if is_complete(task.folder):
        return
    if paths_sha256(task.reads) != task.inputs:
        raise Changed("a file that it reads has changed since it was planned; run the stage again")
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
            if not is_complete(task.folder):  # else another attempt, which was taken for dead, was faster
                raise
        state(task.folder).unlink(missing_ok=True)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def is_complete(folder: Path, checksums: bool = False) -> bool:
    """Tell whether a folder holds exactly the files of its record, by their sizes and, if asked, their checksums."""
    files = read_record(folder).get("files")
    if files is None or files.keys() != set(_files(folder)):
        return False
    return all(
        (folder / name).stat().st_size == size and (not checksums or _sha256(folder / name) == checksum)
        for name, (size, checksum) in files.items()
    )


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a finished task; empty if the folder has none."""
    return read_json(folder / RECORD)


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file; empty if the file is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}


def write_json(path: Path, value: Any) -> None:
    """Write JSON to a temporary file, then rename it: readers never see a half-written file."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def names(folder: Path) -> set[str]:
    """Names of the files and folders in a folder, without hidden ones; empty if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.name.startswith(".")}
    except FileNotFoundError:
        return set()


def _seal(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a folder. All of its bytes are on the disk before the folder gets its name."""
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
