"""Runs `dvc repro` as one small job, for clusters whose login nodes forbid long programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm import commands
from slurm.commands import ClusterError, Limited, Refused, Unanswered
from slurm.job import asked_to_stop, listen, requeue
from slurm.site import NAME, Site, name_here, without_job
from slurm.task import WORK

FOLDER = WORK / "driver"


@dataclass(frozen=True)
class Command:
    """Run a Python module in a job. When its time is up, the module is interrupted and the job requeued.

    Parameters
    ----------
    words : the module and its arguments.
    site : name of the site's file.
    """

    words: Sequence[str]
    site: str

    def __call__(self) -> None:
        listen()
        here = without_job() | {NAME: self.site}  # the job may run on another cluster
        here["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{here['PATH']}"  # dvc.yaml calls `python`
        words = [sys.executable, "-m", *self.words]
        # A shell lets its background jobs ignore interrupts, and the module would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with subprocess.Popen(words, env=here, start_new_session=True) as process:
            while process.poll() is None and not asked_to_stop():
                time.sleep(1)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                process.wait()
        if asked_to_stop():
            requeue()
        sys.exit(process.returncode)


def submit(words: Sequence[str]) -> str:
    """Submit `python -m WORDS` as a job that Slurm requeues after node failures; return the job's id.

    Raises
    ------
    ClusterError : Slurm does not take it, or is not here.
    """
    if not commands.answers():
        raise ClusterError(
            "driver: sbatch is not on PATH or does not answer; go to a login node, or run `make repro` here"
        )
    site = Site.here()
    partition = site.driver.partition or site.partition
    executor = site.executor(FOLDER, site.driver.model_dump(), notice=60, job_name="dvc-repro", partition=partition)
    try:
        return executor.send([Command(list(words), name_here())])
    except Unanswered as doubt:
        ask = "`squeue --name=dvc-repro` tells whether it has the job; cancel it there before you try again"
        raise ClusterError(f"driver: {doubt}; {ask}") from None
    except (Limited, Refused) as reason:
        raise ClusterError(f"driver: sbatch refuses the job: {reason}") from None
