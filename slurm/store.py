"""Keeps finished tasks by a hash of their code, arguments and inputs, so that nothing is done twice."""

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


class Store:
    """A folder with one folder per finished task, named by its key.

    Parameters
    ----------
    root : the folder, made when needed. It may be deleted at any time; its tasks are then done again.
    code : hash of the code that does the tasks.
    """

    def __init__(self, root: Path, code: str) -> None:
        self.root = root
        self.code = code

    def run(
        self,
        tasks: Sequence[Task],
        resources: Resources,
        description: str,
        executor: Executor = "local",
        workers: int = 1,
    ) -> dict[str, Path]:
        """Do the tasks that are not done yet; return name -> folder. Parameters and errors are those of `fan_out`."""
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
        """The tasks with their folders, which are named by the keys of the tasks."""
        planned = []
        for task in tasks:
            kind, inputs = type(task.work), paths_sha256(task.reads)
            facts = {
                "code": self.code,
                "work": f"{kind.__module__}:{kind.__qualname__}",
                "arguments": asdict(task.work),
                "inputs": inputs,
            }
            text = json.dumps(facts, sort_keys=True, default=os.fspath)  # paths count as text; others are an error
            folder = self.root / hashlib.sha256(text.encode()).hexdigest()[:32]
            planned.append(replace(task, folder=folder, inputs=inputs))
        return planned

    def missing(self, planned: Sequence[Task], checksums: bool = False) -> list[Task]:
        """The tasks that are not done, in their order. Two tasks with the same folder count once."""
        distinct = {task.folder: task for task in reversed(planned)}
        done = {folder for folder in distinct if is_complete(folder, checksums)}
        return [task for task in planned if task.folder not in done and distinct[task.folder] is task]

    def _clean(self, missing: Sequence[Task]) -> None:
        """Remove leftovers of killed attempts, except those of jobs in the queue and the states of missing tasks."""
        running = Journal(self.root).in_flight()
        states = {state(task.folder).name for task in missing}
        for leftover in self.root.glob(".*.*"):
            if leftover.name not in states and running.isdisjoint(leftover.name.split(".")):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
