"""A Slurm of two nodes on this host, started and stopped by the tests, and a small project that uses it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DAEMONS = ("munged", "slurmctld", "slurmd")

CONFIGURATION = """
ClusterName=lab
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=6
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MinJobAge=10
KillWait=5
SlurmdTimeout=10
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
JobRequeue=1
MaxArraySize=5
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=1 RealMemory=4000
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10
"""


class Cluster:
    """Its daemons by name, each of which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state", "spool-n1", "spool-n2"):
            (folder / name).mkdir()
        first = free_ports()
        text = CONFIGURATION.format(folder=folder, ports=[first, first + 1, first + 2])
        (folder / "slurm.conf").write_text(text)
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        subprocess.run(["mungekey", "--create", f"--keyfile={folder}/munge.key"], check=True)
        for name in ("munged", "slurmctld", "n1", "n2"):
            self.start(name)
        self.wait_for("idle", "n1", "n2")

    def start(self, name: str) -> None:
        folder = self.folder
        commands = {
            "munged": [
                "munged", "--foreground", "--force", f"--key-file={folder}/munge.key",
                f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed",
            ],
            "slurmctld": ["slurmctld", "-D", "-f", f"{folder}/slurm.conf"],
        }  # fmt: skip
        command = commands.get(name, ["slurmd", "-D", "-N", name, "-f", f"{folder}/slurm.conf"])
        with (folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log)
        if name == "munged":
            until((folder / "munge.socket").exists)

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def save(self, job: str) -> None:
        """Change a job and wait until the controller has written down what it knows, seconds later.

        One that is killed before gives the ids of jobs that run to others, and drains their nodes as soon as it is
        back: "Duplicate jobid". That is for an administrator to mend.
        """
        now = time.time()
        call("scontrol", "update", f"JobId={job}", "Comment=seen")
        until(lambda: (self.folder / "state/job_state").stat().st_mtime > now)

    def wait_for(self, state: str, *nodes: str) -> None:
        until(lambda: all(call("sinfo", "-hn", node, "-p", "main", "-o", "%T").strip() == state for node in nodes))

    def stop(self) -> None:
        call("scancel", "--user=root")
        for process in reversed(self.processes.values()):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
        del os.environ["SLURM_CONF"]


PROJECT = '''
"""Tasks that take a while, step by step, and note what they do."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from slurm.job import asked_to_stop
from slurm.task import state


def note(text):
    with open("notes", "a") as file:
        file.write(text + "\\n")


@dataclass(frozen=True)
class Count:
    """Count tenths of seconds, from where an earlier attempt was."""

    name: str
    seconds: float = 1.0
    fail: bool = False
    die: int = 0
    eat: int = 0

    def run(self, folder: Path) -> None:
        memory = state(folder)
        done = int(memory.read_text()) if memory.exists() else 0
        note(f"begin {self.name} {done} {os.environ.get('SLURM_JOB_ID')} {os.getpid()}")
        if self.fail:
            print("what it says before it fails")
            raise ValueError("it always fails")
        if self.die and done < 5:
            memory.write_text("5")
            os.kill(os.getpid(), signal.SIGKILL)
        if self.eat and int(os.environ["SLURM_MEM_PER_NODE"]) < self.eat:
            print("slurmstepd: error: Detected 1 oom-kill event(s)", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        for step in range(done, round(self.seconds * 10)):
            time.sleep(0.1)
            if asked_to_stop():
                memory.write_text(str(step + 1))
                note(f"stop {self.name} {step + 1}")
                raise RuntimeError("asked to stop")
        (folder / "number").write_text(str(round(self.seconds * 10)))
        note(f"end {self.name}")
'''
MAIN = '''
"""Send the tasks of the command line to the cluster."""

import json
import sys
from pathlib import Path

from slurm.resources import Resources
from slurm.store import Store
from slurm.task import Task, TaskError
from work.tasks import Count

settings = json.loads(sys.argv[1])
resources = {"minutes": 5, "memory_gb": 0.5, "cpus": 1, "gpus": 0, "parallel": 9, "retries": 2, "tasks_per_job": 1}
tasks = [Task(name, Count(name, **arguments)) for name, arguments in settings["tasks"].items()]
try:
    store = Store(Path(".work/lab/count"), "1")
    store.run(tasks, Resources(**(resources | settings["resources"])), "count", "slurm")
except TaskError as error:
    sys.exit(f"error: {error}")
'''


class Project:
    """A folder from which tasks are sent to the cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "slurm", folder / "slurm", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "work").mkdir()
        (folder / "work/__init__.py").touch()
        (folder / "work/tasks.py").write_text(PROJECT)
        (folder / "work/__main__.py").write_text(MAIN)

    def begin(self, tasks: dict[str, dict[str, Any]], **resources: Any) -> subprocess.Popen[str]:
        """Start a driver."""
        settings = json.dumps({"tasks": tasks, "resources": resources})
        return subprocess.Popen(
            [sys.executable, "-m", "work", settings],
            cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def finish(self, driver: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str]:
        output, errors = driver.communicate(timeout=timeout)
        assert "sacct" not in errors and "Warning" not in errors, "a cluster without accounting is nothing to warn of"
        return driver.returncode, output + errors

    def run(self, tasks: dict[str, dict[str, Any]], **resources: Any) -> str:
        status, output = self.finish(self.begin(tasks, **resources))
        assert status == 0, output
        return output

    def notes(self, what: str) -> list[list[str]]:
        """Words of all notes of one kind."""
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1:] for line in lines if line.startswith(f"{what} ")]

    def results(self) -> dict[str, str]:
        done = [path for path in self.folder.glob(".work/lab/count/*/number") if not path.parent.name.startswith(".")]
        return {json.loads((path.parent / ".task.json").read_text())["name"]: path.read_text() for path in done}

    def jobs(self) -> list[str]:
        """Ids of all submitted arrays."""
        paths = sorted(self.folder.glob(".work/lab/count/.jobs/arrays/*/job.json"))
        return [json.loads(path.read_text())["id"] for path in paths]

    def slurm(self, *words: str) -> str:
        return call(sys.executable, "-m", "slurm", *words, cwd=self.folder)


def call(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout


def until(condition: Callable[[], Any], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.2)


def free_ports() -> int:
    """The first of three ports in a row that nobody listens on, below those that outgoing connections are given."""
    for first in random.sample(range(20000, 32000, 3), 100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + 3):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")
