"""Runs independent tasks in this process, in worker processes of this machine, or on a Slurm cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from slurm import commands, local
from slurm.resources import Resources
from slurm.task import Task

Executor = Literal["auto", "inline", "local", "slurm"]


def choose(executor: Executor) -> Executor:
    """Resolve `auto`: slurm where sbatch answers, local elsewhere."""
    if executor != "auto":
        return executor
    return "slurm" if commands.answers() else "local"


def fan_out(
    tasks: Sequence[Task],
    resources: Resources,
    executor: Executor = "auto",
    workers: int = 1,
    description: str = "tasks",
) -> None:
    """Do every task. The outputs are the same with every executor.

    Parameters
    ----------
    tasks : independent of each other, with their folders.
    resources : of one job on a cluster.
    executor : `inline`, one after the other in this process; `local`, worker processes; `slurm`, array jobs.
    workers : number of local processes.
    description : shown at the progress bar and in errors.

    Raises
    ------
    TaskError : a task failed. On a cluster, all others are done first.
    """
    match choose(executor):
        case "inline":
            local.inline(tasks, description)
        case "local":
            local.local(tasks, workers, description)
        case "slurm":
            from slurm import cluster

            cluster.slurm(tasks, resources, description)
