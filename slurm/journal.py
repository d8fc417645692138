"""Notes which jobs were submitted, next to the finished tasks, so that a process that died can be replaced."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from slurm.commands import located
from slurm.task import Task, names, read_json, write_json

if TYPE_CHECKING:
    from slurm.resources import Resources


@dataclass(eq=False)
class Array:
    """A submitted array of jobs, or a single job. Each element does some tasks one after the other."""

    folder: Path
    elements: list[list[str]]  # keys of tasks
    run: str
    asked: dict[str, Any] = field(default_factory=dict)
    job: str | None = None  # None between the decision to submit it and Slurm's answer
    cluster: str = ""  # another than the local one

    @property
    def name(self) -> str:
        """Unique name of the job in Slurm, which finds it even if its id was never noted."""
        return f"{self.run}-{self.folder.name}"

    def id(self, index: int) -> str:
        """The id of an element, as `slurm.commands` takes it."""
        return located(self._number(index), self.cluster)

    def log(self, index: int) -> Path:
        return self.folder / f"{self._number(index)}_0_log.out"

    def _number(self, index: int) -> str:
        return str(self.job) if len(self.elements) == 1 else f"{self.job}_{index}"

    def now(self, index: int) -> dict[str, Any]:
        """Key of the task that an element began last, its node and its time."""
        return read_json(self.folder / f"{index}.now")


class Journal:
    """Files in `.jobs/` of a store: `runs/`, `arrays/`, `failed/`.

    Parameters
    ----------
    root : folder of the store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / ".jobs"
        self.failed = self.folder / "failed"

    def begin(self, description: str, tasks: Sequence[Task], executor: str, resources: Resources) -> None:
        """Note the tasks of a run that begins, for `python -m slurm status`."""
        (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        run = {
            "description": description,
            "executor": executor,
            "resources": resources.model_dump(),
            "started": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "tasks": {task.key: task.name for task in tasks},
        }
        write_json(self.folder / "runs" / f"{slug(description)}.json", run)

    def runs(self) -> dict[str, dict[str, Any]]:
        """The last run of each description, by its slug."""
        return {path.stem: read_json(path) for path in sorted((self.folder / "runs").glob("*.json"))}

    def arrays(self) -> Iterator[Array]:
        """All noted arrays, oldest first."""
        for path in sorted((self.folder / "arrays").glob("*/array.json")):
            note = read_json(path)
            job = read_json(path.with_name("job.json")).get("id")
            yield Array(path.parent, note["elements"], note["run"], note["asked"], job, note.get("cluster", ""))

    def new_array(self, run: str, elements: list[list[str]], asked: dict[str, Any], cluster: str = "") -> Array:
        """Note that an array is about to be submitted."""
        stamp = f"{time.time_ns():x}"
        array = Array(self.folder / "arrays" / stamp, elements, run, asked, cluster=cluster)
        array.folder.mkdir(parents=True)
        note = {"elements": elements, "run": run, "asked": asked, "cluster": cluster}
        write_json(array.folder / "array.json", note)
        return array

    def submitted(self, array: Array, job: str) -> None:
        """Note the id of an array's job."""
        array.job = job
        write_json(array.folder / "job.json", {"id": job})

    def end(self, run: str) -> None:
        """Note that the jobs of a run have ended."""
        for array in self.arrays():
            if array.run == run:
                (array.folder / "ended").touch()

    def waits(self, run: str, reason: str = "") -> None:
        """Note that a run can submit nothing or asks in vain, and why; without a reason, that it goes on."""
        path = self.folder / "waits" / f"{run}.json"
        if reason:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"reason": reason, "host": socket.gethostname(), "pid": os.getpid()})
        else:
            path.unlink(missing_ok=True)

    def wait_of(self, run: str) -> str:
        """Why a run waits; empty if it does not, or if its process is no more."""
        note = read_json(self.folder / "waits" / f"{run}.json")
        if not note or (note["host"] == socket.gethostname() and not psutil.pid_exists(note["pid"])):
            return ""
        return f"{note['reason']} (process {note['pid']} on {note['host']})"

    def forget(self, array: Array) -> None:
        shutil.rmtree(array.folder, ignore_errors=True)

    def in_flight(self) -> set[str]:
        """Keys of the tasks whose jobs may not have ended."""
        arrays = [array for array in self.arrays() if not (array.folder / "ended").exists()]
        return {key for array in arrays for keys in array.elements for key in keys}

    def failure(self, key: str) -> dict[str, Any]:
        return read_json(self.failed / f"{key}.json")

    def fail(self, key: str, failure: dict[str, Any]) -> None:
        self.failed.mkdir(parents=True, exist_ok=True)
        write_json(self.failed / f"{key}.json", failure)

    def failures(self) -> set[str]:
        """Keys of tasks whose last attempt failed."""
        return {name.removesuffix(".json") for name in names(self.failed)}

    def clear(self, key: str) -> None:
        (self.failed / f"{key}.json").unlink(missing_ok=True)


def slug(description: str) -> str:
    return re.sub(r"\W+", "-", description)


def tail(log: Path, lines: int = 20) -> list[str]:
    """The last lines of a log; empty if there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []
