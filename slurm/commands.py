"""Wrappers of squeue, sacct, scontrol and scancel. If the controller does not answer, nothing is assumed."""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
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


def pauses() -> Iterator[float]:
    """Seconds to wait between questions; they grow to `PATIENCE`."""
    seconds = 2.0
    while True:
        yield seconds
        seconds = min(seconds * 1.5, PATIENCE)


def answers() -> bool:
    """Tell whether sbatch is installed and configured here; the cluster itself may be down."""
    return shutil.which("sbatch") is not None and _call("sbatch", "--version").returncode == 0


@cache
def configuration() -> dict[str, str]:
    """The settings of the controller, which has some minutes to answer.

    Raises
    ------
    ClusterError : it did not answer.
    """
    reason = ""
    for seconds, _ in zip(pauses(), range(10), strict=False):
        done = _call("scontrol", "show", "config")
        pairs = (line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        found = {name.strip(): value.strip() for name, value in pairs}
        if done.returncode == 0 and "MaxArraySize" in found:
            return found
        reason = last_line(done.stderr)
        time.sleep(seconds)
    raise ClusterError(
        f"scontrol: Slurm's controller does not answer ({reason}); wait for it, or set `executor: local`"
    )


def statuses() -> dict[str, Status] | None:
    """The user's jobs by id (`12`, or `12_3` for an array element); None if the controller did not answer."""
    done = _call("squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}",
                 "--format=%F|%K|%T|%N|%j|%r")  # fmt: skip
    if done.returncode:
        return None
    found = {}
    for line in done.stdout.splitlines():
        job, index, state, node, name, reason = (line.split("|", 5) + [""] * 5)[:6]
        found[job if index == "N/A" else f"{job}_{index}"] = Status(state, node, reason, name)
    return found


def history(jobs: Iterable[str]) -> dict[str, Status]:
    """States from the accounting, for jobs that the queue has forgotten; empty on clusters without accounting."""
    jobs = sorted({job.partition("_")[0] for job in jobs})
    if not jobs or not _has_accounting():
        return {}
    done = _call("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(jobs)}",
                 "--format=JobID,State,NodeList")  # fmt: skip
    rows = [line.split("|") for line in done.stdout.splitlines() if done.returncode == 0]
    return {row[0]: Status(row[1].split(" ")[0], row[2]) for row in rows if len(row) == 3}


@cache
def _has_accounting() -> bool:
    return configuration().get("AccountingStorageType", "") not in ("", "(null)", "accounting_storage/none")


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs. Jobs that have ended stay as they are."""
    jobs = list(jobs)
    for start in range(0, len(jobs), 500):
        _call("scancel", *jobs[start : start + 500])


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
