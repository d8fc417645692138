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

from slurm.commands import ClusterError
from slurm.job import TIME_IS_UP, asked_to_stop, listen, requeue
from slurm.site import Site, without_job
from slurm.store import WORK

FOLDER = WORK / "driver"


@dataclass(frozen=True)
class Command:
    """Run a Python module in a job. Told that its time is up, it interrupts it and asks to be requeued."""

    words: Sequence[str]

    def __call__(self) -> None:
        listen()
        here = without_job()
        here["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{here['PATH']}"  # whose `python` dvc.yaml names
        words = [sys.executable, "-m", *self.words]
        # A shell starts what runs in its background deaf to interrupts, and so would be what is started from here.
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
    """Submit `python -m WORDS` as a job that Slurm requeues after failures of nodes; return the id of the job.

    Raises
    ------
    ClusterError : Slurm refuses it.
    """
    from submitit import SlurmExecutor

    site = Site.here()
    options, wanted = site.options(), site.driver
    notice = min(60, wanted.minutes * 15)
    options["additional_parameters"] |= {"signal": f"B:{TIME_IS_UP.name.removeprefix('SIG')}@{notice}"}
    options["partition"] = wanted.partition or site.partition
    executor = SlurmExecutor(FOLDER, max_num_timeout=0, python=site.interpreter)
    executor.update_parameters(
        **options,
        job_name="dvc-repro",
        time=wanted.minutes,
        mem=f"{round(wanted.memory_gb * 1024)}M",
        cpus_per_task=wanted.cpus,
        setup=site.lines(),
        stderr_to_stdout=True,
        use_srun=False,
    )
    try:
        return executor.submit(Command(list(words))).job_id
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ClusterError(f"driver: sbatch refuses the job: {reason}") from None
