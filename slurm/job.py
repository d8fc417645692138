"""Runs inside a job: does some tasks one after the other and notes how they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from slurm.journal import Journal
from slurm.task import Changed, Task, one_line, perform, write_json

TIME_IS_UP = signal.SIGUSR2
_received: list[int] = []


def asked_to_stop() -> bool:
    """Tell whether this process's job must end soon: its time is almost up, or it is preempted or cancelled."""
    return bool(_received)


def listen() -> None:
    """Note Slurm's signals instead of dying of them; long work calls `asked_to_stop`."""

    def receive(number: int, _: FrameType | None) -> None:
        _received.append(number)
        print(f"received {signal.Signals(number).name}", flush=True)

    for number in (TIME_IS_UP, signal.SIGTERM):
        signal.signal(number, receive)


def requeue() -> None:
    """Ask Slurm to run this job again from its start. Where Slurm refuses, the supervisor submits another job."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = "_".join(part for part in job if part) if all(job) else os.environ["SLURM_JOB_ID"]
    subprocess.run(["scontrol", "requeue", name], check=False, timeout=60)


@dataclass(frozen=True)
class Element:
    """The tasks of one job, pickled for it.

    The pickle names the classes of the tasks' work; the job imports them from the snapshot of the code that was made at
    submission.

    Parameters
    ----------
    tasks : tasks of one store.
    folder : folder of the array.
    index : place of this element in the array.
    asked : resources of the job.
    """

    tasks: Sequence[Task]
    folder: Path
    index: int
    asked: dict[str, Any]

    def __call__(self) -> None:
        listen()
        (self.folder / f"{self.index}.now").unlink(missing_ok=True)  # of a run before it was requeued
        for task in self.tasks:
            if _received:
                break
            self._do(task)
        if TIME_IS_UP in _received:
            requeue()
        if _received:
            sys.exit(1)

    def _do(self, task: Task) -> None:
        node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
        write_json(self.folder / f"{self.index}.now", {"key": task.key, "node": node, "since": time.time()})
        print(f"{time.strftime('%F %T')} {node}: {task.name} ({task.key})", flush=True)
        try:
            perform(task, self.asked)
        except Exception as error:
            if _received:  # it stopped because it was asked to, and continues later
                return
            plain = getattr(error, "plain", False)  # a user's mistake needs no traceback
            lines = [] if plain else traceback.format_exc().splitlines()
            print(*lines or [f"error: {one_line(error)}"], sep="\n", flush=True)
            memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            again = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
            failure = {
                "reason": one_line(error),
                "kind": "memory" if memory else "changed" if isinstance(error, Changed) else "error",
                "again": memory or again,
                "lines": lines[-20:],
            }
            Journal(task.folder.parent).fail(task.key, failure)
