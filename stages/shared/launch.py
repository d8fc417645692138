"""Runs a training on several GPUs of this machine: `accelerate launch` starts this module once for each."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import psutil

from lorarar.errors import UserError
from lorarar.training.checkpoint import Interrupted
from lorarar.training.processes import Processes
from slurm.job import asked_to_stop
from stages.shared.context import GPUS

WORK, STOP, ERROR = "work.pickle", "stop", "error"
"""Files between the task and its processes: what to do, that they shall stop, and a user's mistake that one found."""


class Trains(Protocol):
    """Work that several processes do together."""

    def train(self, folder: Path, stop: Any, processes: Processes) -> None:
        """Train as one of several processes."""


def asked() -> int:
    """How many processes a training has: one for each GPU of its job, or one alone.

    Raises
    ------
    UserError
        The job asks for more GPUs than there are.
    """
    import torch

    number = int(os.environ.get(GPUS, "0"))
    if number > 1 and torch.cuda.device_count() < number:
        there = torch.cuda.device_count()
        raise UserError(f"params.yaml: resources ask for {number} GPUs, but {there} are here; lower `hypernet: gpus`")
    return max(number, 1)


def launch(work: Trains, folder: Path, processes: int) -> None:
    """Train in so many processes, and wait for them.

    Raises
    ------
    UserError
        One of them found a user's mistake.
    Interrupted
        The task was asked to stop, and the state is on disk.
    RuntimeError
        One of them died; its own words stand above.
    """
    (folder / WORK).write_bytes(pickle.dumps(work))
    words = ["--multi_gpu", "--num_machines=1", f"--num_processes={processes}", "--main_process_port=0"]
    words += ["--gpu_ids=all"]  # the machine's settings of accelerate may say otherwise
    words += ["--mixed_precision=no", "--dynamo_backend=no", "--module", __name__, str(folder), str(os.getpid())]
    # A session of its own: Slurm's signals are for this process, which tells the others in time to keep the state.
    command = [sys.executable, "-m", "accelerate.commands.launch", *words]
    child = subprocess.Popen(command, start_new_session=True)
    try:
        while child.poll() is None:
            if asked_to_stop():
                (folder / STOP).touch()
            time.sleep(0.2)
    finally:
        if child.poll() is None:  # Ctrl-C, or a kill
            child.terminate()
            child.wait()
    if (folder / ERROR).exists():
        raise UserError((folder / ERROR).read_text(encoding="utf-8"))
    if child.returncode:
        raise RuntimeError(f"a process of {processes} ended with an error, status {child.returncode}")
    (folder / WORK).unlink()
    if (folder / STOP).exists():
        (folder / STOP).unlink()
        if not any(folder.iterdir()):
            raise Interrupted("stopped, as asked; its state is kept")


def main() -> None:
    """Be one of the processes."""
    folder, task = Path(sys.argv[1]), int(sys.argv[2])

    def stop() -> bool:
        return (folder / STOP).exists() or not psutil.pid_exists(task)  # nobody waits for the result of a dead task

    work: Trains = pickle.loads((folder / WORK).read_bytes())
    try:
        work.train(folder, stop, Processes.here())
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
    except UserError as error:
        (folder / ERROR).write_text(str(error), encoding="utf-8")
        sys.exit(1)


if __name__ == "__main__":
    main()
