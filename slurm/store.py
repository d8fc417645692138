"""Finished tasks, kept by content: the same code, arguments and inputs are not worked on twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from slurm.fanout import Executor, fan_out
from slurm.journal import Journal
from slurm.resources import Resources
from slurm.task import Task, is_complete, paths_sha256, state

WORK = Path(os.environ.get("LORARAR_WORK", ".work"))
"""Finished tasks and unfinished files. Runs in several folders can share it: keys are contents and relative paths."""


class Store:
    """A folder with one folder per finished task, named by its key.

    Parameters
    ----------
    root : the folder, made when needed. It may be deleted at any time: that only costs the work again.
    code : checksum of the code that does the tasks.
    """

    def __init__(self, root: Path, code: str) -> None:
        self.root = root
        self.code = code

    def key(self, task: Task) -> str:
        """Name of the result of a task: its code, its arguments and the content of its inputs."""
        kind = f"{type(task.work).__module__}:{type(task.work).__qualname__}"
        arguments = asdict(task.work)  # type: ignore[call-overload]
        facts = {"code": self.code, "work": kind, "arguments": arguments, "inputs": task.inputs}
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def run(
        self,
        tasks: Sequence[Task],
        resources: Resources,
        description: str,
        executor: Executor = "local",
        workers: int = 1,
    ) -> dict[str, Path]:
        """Do the tasks that are not done yet, and return the folder of each by its name.

        `resources`, `executor`, `workers` and `description` are those of `fan_out`.
        """
        planned = self.plan(tasks)
        missing = self.missing(planned, checksums=True)
        if tasks and len(missing) < len(tasks):
            print(f"{description}: {len(tasks) - len(missing)} of {len(tasks)} were done before", flush=True)
        for task in missing:
            if task.folder.exists():
                print(f"{description}: {task.name}: its files are damaged or have no record; done again", flush=True)
                shutil.rmtree(task.folder)
        self._clean(missing)
        if missing:
            Journal(self.root).begin(description, planned, executor, resources)
            fan_out(missing, resources, executor, workers, description)
        return {task.name: task.folder for task in planned}

    def plan(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks with the folders that their keys name."""
        known = [replace(task, inputs=paths_sha256(task.reads)) for task in tasks]
        return [replace(task, folder=self.root / self.key(task)) for task in known]

    def missing(self, planned: Sequence[Task], checksums: bool = False) -> list[Task]:
        """Those that are not done, in their order; two names for one piece of work make one task."""
        distinct = {task.folder: task for task in reversed(planned)}
        done = {folder for folder in distinct if is_complete(folder, checksums)}
        return [task for task in planned if task.folder not in done and distinct[task.folder] is task]

    def _clean(self, missing: Sequence[Task]) -> None:
        """Remove what killed attempts have left: not what jobs in a queue work on, nor states to go on from."""
        running = Journal(self.root).in_flight()
        states = {state(task.folder).name for task in missing}
        for leftover in self.root.glob(".*.*"):
            if leftover.name not in states and running.isdisjoint(leftover.name.split(".")):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
