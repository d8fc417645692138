"""Reports progress, finds logs and cancels jobs, from the files of the stores and one question to the queue."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from slurm import commands
from slurm.journal import Journal
from slurm.task import names, read_record

SAMPLE = 200
"""Largest number of finished tasks that a median is estimated from."""


@dataclass(frozen=True)
class Progress:
    """Progress of the last run of one stage.

    Attributes
    ----------
    failed : names of tasks.
    seconds_left : None if no task is finished.
    reason : Slurm's reason why most of the queued tasks wait; with its remedy, one that may not pass comes first.
    waits : why the program that waits for the jobs cannot submit or ask.
    """

    description: str
    done: int
    running: int
    queued: int
    failed: list[str]
    missing: int
    seconds_left: float | None
    reason: str
    waits: str


def journals(work: Path) -> Iterator[Journal]:
    """The journals of all stores, .work/<base>/<stage>."""
    for folder in sorted(work.glob("*/*/.jobs")):
        yield Journal(folder.parent)


def progress(work: Path) -> list[Progress]:
    """Progress of the last run of every stage."""
    jobs = _jobs(work) if commands.answers() else None
    found = []
    for journal in journals(work):
        present, failures = names(journal.root), journal.failures()
        states, reasons = _states(journal, jobs or {})
        for name, run in journal.runs().items():
            tasks = run["tasks"]
            open_tasks = tasks.keys() - present
            failed = open_tasks & failures
            count = Counter(states.get(key) for key in open_tasks - failed)
            running, queued = count["running"], count["queued"]
            each = typical_seconds(journal.root, tasks.keys() & present)
            at_once = max(running, 1) if running else run["resources"]["parallel"]
            left = each * len(open_tasks - failed) / at_once if each is not None else None
            missing = len(open_tasks) - len(failed) - running - queued
            which = sorted(tasks[key] for key in failed)
            why = Counter(reasons[key] for key in open_tasks - failed if key in reasons)
            lasting, text = max(why, key=lambda reason: (reason[0], why[reason]), default=(False, ""))
            reason = f"{text}; they may never start" * lasting or text
            done = len(tasks) - len(open_tasks)
            found.append(
                Progress(run["description"], done, running, queued, which, missing, left, reason, journal.wait_of(name))
            )
    return found


def typical_seconds(root: Path, keys: Iterable[str]) -> float | None:
    """Median time of finished tasks in seconds; None if none is finished."""
    records = (read_record(root / key) for key in islice(keys, SAMPLE))
    seconds = [record["seconds"] for record in records if record]
    return statistics.median(seconds) if seconds else None


def cancel(work: Path, descriptions: Sequence[str] = ()) -> int:
    """Cancel the jobs of all runs, or of those with these descriptions; return their number.

    The process that waits for them sees a mark and does not submit them again.

    Raises
    ------
    ClusterError : a description is unknown, or the controller does not answer.
    """
    known = {note["description"] for journal in journals(work) for note in journal.runs().values()}
    if unknown := [name for name in descriptions if name not in known]:
        names = ", ".join(sorted(known)) or "none yet"
        raise commands.ClusterError(f"{unknown[0]}: no stage of this name was run; known: {names}")
    jobs = _jobs(work)
    if jobs is None:
        raise commands.ClusterError("squeue: Slurm's controller does not answer, so no job was cancelled; try again")
    live = {_whole(job) for job, status in jobs.items() if not status.ended}
    by_name = {status.name: _whole(job) for job, status in jobs.items() if not status.ended}
    ids = set()
    for journal in journals(work):
        wanted = {
            run for run, note in journal.runs().items() if not descriptions or note["description"] in descriptions
        }
        for array in journal.arrays():
            job = commands.located(array.job, array.cluster) if array.job else by_name.get(array.name)
            if array.run in wanted and job in live:
                (array.folder / "cancelled").touch()
                ids.add(str(job))
    commands.cancel(sorted(ids))
    return len(ids)


def _jobs(work: Path) -> dict[str, commands.Status] | None:
    """The user's jobs on all clusters that the journals name."""
    return commands.statuses({array.cluster for journal in journals(work) for array in journal.arrays()} or {""})


def _whole(job: str) -> str:
    """The id of the array that a job is an element of."""
    return re.sub(r"_\d+", "", job)


def log_of(work: Path, task: str) -> Path | None:
    """Find the log of the last job of a task, by the task's name or the start of its key."""
    found: list[Path] = []
    for journal in journals(work):
        keys = {
            key for run in journal.runs().values() for key, name in run["tasks"].items()
            if name == task or (len(task) >= 6 and key.startswith(task))
        }  # fmt: skip
        for array in journal.arrays():
            found += [array.log(index) for index, element in enumerate(array.elements) if keys & set(element)]
    logs = [log for log in found if log.exists()]
    return max(logs, key=lambda log: log.stat().st_mtime) if logs else None


def _states(journal: Journal, jobs: dict[str, commands.Status]) -> tuple[dict[str, str], dict[str, tuple[bool, str]]]:
    """Tasks in the queue: key -> "running" or "queued", and, for pending ones, key -> (it may last, Slurm's reason)."""
    states: dict[str, str] = {}
    reasons: dict[str, tuple[bool, str]] = {}
    for array in journal.arrays():
        for index, keys in enumerate(array.elements):
            status = jobs.get(array.id(index))
            if status is None or status.ended:
                continue
            current = array.now(index).get("key") if status.state == "RUNNING" else None
            states.update({key: "running" if key == current else "queued" for key in keys})
            if status.state == "PENDING" and status.reason not in ("", "None"):
                told = f"{status.reason}: {status.remedy}" if status.remedy else status.reason
                reasons.update(dict.fromkeys(keys, (bool(status.remedy), told)))
    return states, reasons
