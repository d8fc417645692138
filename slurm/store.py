"""Finished tasks, kept by content: the same code, arguments and inputs are not worked on twice."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slurm.fanout import Executor, fan_out
from slurm.journal import Journal
from slurm.resources import Resources
from slurm.task import Function, Task, fingerprint, is_complete, state


class Store:
    """A folder with one folder per finished task, named by its key.

    Parameters
    ----------
    root : the folder, made when needed. It may be deleted at any time: that only costs the work again.
    code : fingerprint of the code that does the tasks.
    """

    def __init__(self, root: Path, code: str) -> None:
        self.root = root
        self.code = code

    def key(self, arguments: Mapping[str, Any], inputs: Iterable[Path | str]) -> str:
        """Name of the task with these arguments (JSON values) and the content of these input files."""
        return self._key(arguments, fingerprint(inputs))

    def _key(self, arguments: Mapping[str, Any], inputs: str) -> str:
        facts = {"code": self.code, "arguments": arguments, "inputs": inputs}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def run(
        self,
        function: Function,
        tasks: Sequence[Task],
        resources: Resources,
        description: str,
        executor: Executor = "local",
        workers: int = 1,
    ) -> dict[str, Path]:
        """Do the tasks that are not done yet, and return the folder of each by its name.

        Parameters
        ----------
        function : `function(folder, **arguments)` writes into `folder`, which is kept if it returns.
        resources, executor, workers, description : as in `fan_out`.
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
            fan_out(missing, function, resources, executor, workers, description)
        return {task.name: task.folder for task in planned}

    def plan(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks with the folders that their keys name."""
        planned = []
        for task in tasks:
            inputs = fingerprint(task.reads)
            planned.append(replace(task, folder=self.root / self._key(task.arguments, inputs), inputs=inputs))
        return planned

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
