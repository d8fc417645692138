"""Finished tasks, kept by content: the same code, arguments and inputs are not worked on twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from slurm.fanout import Task, fan_out


def fingerprint(paths: Iterable[Path | str]) -> str:
    """SHA-256 over the names and contents of files, and of all files below folders."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        for file in sorted(below for below in path.rglob("*") if below.is_file()) if path.is_dir() else [path]:
            if "__pycache__" in file.parts:
                continue
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{file.as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


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

    def key(self, arguments: dict[str, Any], inputs: Iterable[Path | str]) -> str:
        """Name of the task with these arguments (JSON values) and the content of these input files."""
        facts = {"code": self.code, "arguments": arguments, "inputs": fingerprint(inputs)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def run(
        self,
        function: Callable[..., None],
        tasks: Sequence[tuple[Task, Sequence[Path | str]]],
        workers: int,
        description: str,
    ) -> dict[str, Path]:
        """Do the tasks that are not done yet, and return the folder of each by its name.

        Parameters
        ----------
        function : `function(folder, **arguments)` writes into `folder`, which is kept if it returns.
        tasks : each with the files and folders it reads.
        workers, description : as in `fan_out`.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        for leftover in self.root.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)
        folders = {task.name: self.root / self.key(task.arguments, inputs) for task, inputs in tasks}
        # The order of the tasks stays; two names for one piece of work make one task.
        missing = {folders[task.name]: task for task, _ in tasks if not folders[task.name].is_dir()}
        if tasks and len(missing) < len(tasks):
            print(f"{description}: {len(tasks) - len(missing)} of {len(tasks)} were done before", flush=True)
        calls = [
            Task(task.name, {"function": function, "folder": folder, "arguments": task.arguments})
            for folder, task in missing.items()
        ]
        fan_out(calls, _keep, workers, description)
        return folders


def _keep(function: Callable[..., None], folder: Path, arguments: dict[str, Any]) -> None:
    """Let the function fill a hidden folder, which gets its name when it is complete."""
    hidden = folder.with_name(f".{folder.name}.{os.getpid()}")
    hidden.mkdir()
    try:
        function(hidden, **arguments)
        hidden.rename(folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
