"""Wrappers of squeue, sacct, scontrol and scancel. If the controller does not answer, nothing is assumed."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

PATIENCE = 60
"""Seconds that a command may take, and longest wait between two questions."""

ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip


class ClusterError(Exception):
    """The cluster or its settings are not usable. The message is one line: the fault and its remedy."""


class Refused(Exception):
    """sbatch refuses jobs for good."""


class Limited(Exception):
    """sbatch takes no more jobs until some have ended."""


class Unanswered(Exception):
    """sbatch did not say whether it has taken the jobs.

    Attributes
    ----------
    printed : it ended well, but printed no job id.
    questions : number of further questions after which jobs that the queue does not know were not taken.
    """

    def __init__(self, message: str, printed: bool = False) -> None:
        super().__init__(message)
        self.printed = printed
        self.questions = 1


LASTING = {
    r"PartitionTimeLimit|\w*MaxWall|\w*MinutesPerJob": "lower `minutes` of the stage, or change partition or qos",
    r"PartitionNodeLimit|\w*Per(Job|Node)|\w*Min(Cpu|GRES|Memory)": (
        "change `cpus`, `memory_gb` or `gpus` of the stage, or partition or qos"
    ),
    r"BadConstraints": "no node has what is asked for: see `constraint` and `sbatch` of the site's file",
    r"ReqNodeNotAvail": "nodes are down, drained or reserved: see `sinfo -R`, and `exclude` of the site's file",
    r"PartitionDown|PartitionInactive": "choose another `partition` in the site's file, or wait for the administrators",
    r"ReservationDeleted": "change `reservation` in the site's file",
    r"InvalidAccount|InvalidQOS|AccountNotAllowed|QOSNotAllowed": "correct `account` or `qos` in the site's file",
    r"JobHeld": "`scontrol release` lets them go on",
    r"DependencyNeverSatisfied": "cancel them and run the stage again",
}
"""Reasons of pending jobs that may never pass, as patterns, with remedies."""


@dataclass(frozen=True)
class Status:
    """State of one job or array element, from the queue or the accounting."""

    state: str
    node: str = ""
    reason: str = ""
    name: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def stuck(self) -> bool:
        """Slurm could not launch the job and holds it; it would stay in the queue for ever."""
        return self.state == "PENDING" and "launch failed" in self.reason.lower().replace("_", " ")

    @property
    def remedy(self) -> str:
        """What helps a pending job whose reason does not pass by itself; empty for other jobs."""
        if self.state != "PENDING" or self.stuck:
            return ""
        return next((remedy for pattern, remedy in LASTING.items() if re.match(pattern, self.reason)), "")


def pauses() -> Iterator[float]:
    """Seconds to wait between questions; they grow to `PATIENCE`."""
    seconds = 2.0
    while True:
        yield seconds
        seconds = min(seconds * 1.5, PATIENCE)


def answers() -> bool:
    """Tell whether sbatch is installed and configured here; the cluster itself may be down."""
    return shutil.which("sbatch") is not None and _call("sbatch", "--version").returncode == 0


def chosen_cluster() -> str:
    """The cluster that the user's environment names for sbatch; empty for the local one.

    Raises
    ------
    ClusterError : it names several.
    """
    names = ("SBATCH_CLUSTERS", "SLURM_CLUSTERS")
    return next((one_cluster(name, value) for name in names if (value := os.environ.get(name))), "")


def one_cluster(where: str, name: str) -> str:
    """The name, if it is one cluster's; jobs of several clusters may have equal ids."""
    if re.search(r"[\s,]", name) or name == "all":
        raise ClusterError(f"{where}: {name!r}: name one cluster")
    return name


@cache
def configuration(cluster: str = "") -> dict[str, str]:
    """The settings of the controller, which has some minutes to answer.

    Raises
    ------
    ClusterError : it did not answer, or Slurm is not installed here.
    """
    if not shutil.which("scontrol"):
        raise ClusterError("scontrol: not on PATH, so no Slurm is here; go to a login node, or set `executor: local`")
    reason = ""
    for seconds, attempt in zip(pauses(), range(10), strict=False):
        done = _call("scontrol", *_at(cluster), "show", "config")
        pairs = (line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        found = {name.strip(): value.strip() for name, value in pairs}
        if done.returncode == 0 and "MaxArraySize" in found:
            return found
        reason = last_line(done.stderr)
        if not attempt:
            print(f"Slurm's controller does not answer ({reason}); asked again for some minutes", file=sys.stderr)
        time.sleep(seconds)
    raise ClusterError(
        f"scontrol: Slurm's controller does not answer ({reason}); wait for it, or set `executor: local`"
    )


def statuses(clusters: Iterable[str] = ("",)) -> dict[str, Status] | None:
    """The user's jobs by id: `12`, `12_3` for an element of an array, `12_3@x` on another cluster.

    Returns None if a controller did not answer.
    """
    found = {}
    for cluster in sorted(set(clusters)):
        done = _call("squeue", *_at(cluster), "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}",
                     "--format=%F|%K|%T|%N|%j|%r")  # fmt: skip
        if done.returncode:
            return None
        for line in done.stdout.splitlines():
            if line.count("|") >= 5:  # else it names the cluster
                job, index, state, node, name, reason = line.split("|", 5)
                identity = job if index == "N/A" else f"{job}_{index}"
                found[located(identity, cluster)] = Status(state, node, reason, name)
    return found


def located(job: str, cluster: str) -> str:
    """The id of a job with its cluster, if that is another than the local one."""
    return f"{job}@{cluster}" if cluster else job


def history(jobs: Iterable[str]) -> dict[str, Status]:
    """States from the accounting, for jobs that the queue has forgotten; empty on clusters without accounting."""
    found: dict[str, Status] = {}
    for cluster, numbers in _by_cluster(re.sub(r"_\d+", "", job) for job in jobs):
        if not (cluster or _has_accounting()):
            continue
        form = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State,NodeList")
        done = _call("sacct", *_at(cluster), *form, f"--jobs={','.join(numbers)}")
        rows = [line.split("|") for line in done.stdout.splitlines() if done.returncode == 0]
        found |= {located(row[0], cluster): Status(row[1].split(" ")[0], row[2]) for row in rows if len(row) == 3}
    return found


@cache
def _has_accounting() -> bool:
    return configuration().get("AccountingStorageType", "") not in ("", "(null)", "accounting_storage/none")


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs. Jobs that have ended stay as they are."""
    for cluster, numbers in _by_cluster(jobs):
        for start in range(0, len(numbers), 500):
            _call("scancel", *_at(cluster), *numbers[start : start + 500])


def _by_cluster(jobs: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Ids without their clusters, for each cluster."""
    found: dict[str, set[str]] = {}
    for job in jobs:
        number, _, cluster = job.partition("@")
        found.setdefault(cluster, set()).add(number)
    return [(cluster, sorted(numbers)) for cluster, numbers in sorted(found.items())]


def _at(cluster: str) -> list[str]:
    """Options of every command that ask another cluster than the local one."""
    return ["-M", cluster] if cluster else []


def first_node(nodes: str) -> str:
    """Name of the first node of a list such as `gpu[07-09]`."""
    return re.sub(r"\[(\w+)[^]]*\].*", r"\1", nodes).split(",")[0]


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def last_line(text: str) -> str:
    """The last line of a message of Slurm, which tells the reason."""
    return (text.strip().splitlines() or ["no reason given"])[-1]
