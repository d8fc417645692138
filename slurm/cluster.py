"""Runs tasks as Slurm array jobs and retries those lost to preemption, node failures or time limits."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slurm import commands
from slurm.commands import ClusterError, Limited, Refused, Status, Unanswered
from slurm.job import Element
from slurm.journal import Array, Journal, slug, tail
from slurm.local import ONE_THREAD, progress_bar
from slurm.resources import Resources
from slurm.site import Site
from slurm.task import Task, TaskError, names, paths_sha256

if TYPE_CHECKING:
    from slurm.sbatch import Sbatch

NO_ANSWER = "squeue gets no answer from Slurm's controller"

OUT_OF_MEMORY = re.compile(r"oom.?kill|out.of.memory|exceeded.*memory.limit", re.IGNORECASE)
"""Lines that slurmstepd or the kernel write into the log of a job that they kill."""


def slurm(tasks: Sequence[Task], resources: Resources, description: str) -> None:
    """Do tasks as array jobs and wait for them. MaxArraySize limits the size of an array.

    If an earlier process has submitted jobs for the same tasks, they are waited for and not submitted again. On Ctrl-C
    jobs stay in the queue.

    Raises
    ------
    TaskError : a task failed, after all others were done.
    ClusterError : Slurm refuses the jobs.
    """
    ArraySupervisor(tasks, resources, description).run()


@dataclass(frozen=True)
class _Place:
    """One element of an array, which does some tasks."""

    array: Array
    index: int

    @property
    def id(self) -> str:
        return self.array.id(self.index)


class ArraySupervisor:
    """Submits the arrays of one run, watches them, and submits again what was lost."""

    def __init__(self, tasks: Sequence[Task], resources: Resources, description: str) -> None:
        self.tasks = {task.key: task for task in tasks}
        self.resources = resources
        self.description = description
        self.root = tasks[0].folder.parent
        self.journal = Journal(self.root)
        self.site = Site.here()
        self.flying: dict[_Place, set[str]] = {}
        self.waiting = list(self.tasks)
        self.absent: Counter[_Place] = Counter()  # number of questions in a row to which the queue did not know it
        self.attempts: Counter[str] = Counter()
        self.memory_gb = dict.fromkeys(self.tasks, resources.memory_gb)
        self.bad_nodes: set[str] = set()
        self.slowly = commands.pauses()
        self.failed: dict[str, dict[str, Any]] = {}
        self.unsure: tuple[Array, Unanswered] | None = None  # Slurm may have taken it
        self.obstacles: dict[str, str] = {}  # what cannot be done now -> why
        self.named: set[str] = set()  # remedies for jobs that may never start, which were shown

    def run(self) -> None:
        attached = self._attach()
        if attached:
            print(f"{self.description}: {attached} of {len(self.tasks)} tasks were in the queue already", flush=True)
        for key in self.waiting:
            self.journal.clear(key)
        try:
            self._watch()
        except KeyboardInterrupt:
            jobs = len({place.array.job for place in self.flying})
            print(
                f"\n{self.description}: {self._left} tasks in {jobs} jobs stay in the queue; the same command waits "
                "for them, `python -m slurm cancel` ends them",
                file=sys.stderr,
            )
            raise
        finally:
            self.journal.waits(slug(self.description))
        self.journal.end(slug(self.description))
        if self.failed:
            raise self._error()

    def _watch(self) -> None:
        left, pauses, look = self._left, commands.pauses(), 0.0
        with progress_bar(len(self.tasks), self.description, initial=len(self.tasks) - left) as progress:
            while self._left:
                if self.waiting and self._settle() and self._submit():
                    self._note("submit")
                    self.slowly = commands.pauses()
                time.sleep(next(pauses))
                self._read_outputs()
                # Files are read first. The queue is asked only about open tasks, more and more rarely.
                if self.flying and time.monotonic() >= look:
                    look = time.monotonic() + self._read_queue()
                if self._left < left:
                    pauses = commands.pauses()
                progress.update(left - self._left)
                left = self._left

    @property
    def _left(self) -> int:
        return len(self.waiting) + sum(map(len, self.flying.values()))

    def _attach(self) -> int:
        """Find the jobs of an earlier process; return the number of their tasks."""
        known = [array for array in self.journal.arrays() if array.run == slug(self.description)]
        if not known:
            return 0
        jobs = self._ask_until_answered({array.cluster for array in known})
        for array in known:
            if array.job is None:  # the process died while it submitted
                self._find(array, jobs)
            live = [
                index
                for index in range(len(array.elements))
                if array.job and array.id(index) in jobs and not jobs[array.id(index)].ended
            ]
            for index in live:
                keys = set(array.elements[index]) & set(self.waiting)
                if keys:
                    self.flying[_Place(array, index)] = keys
                    self.waiting = [key for key in self.waiting if key not in keys]
            if not live:
                self.journal.forget(array)
        return sum(map(len, self.flying.values()))

    def _ask_until_answered(self, clusters: set[str]) -> dict[str, Status]:
        for seconds in commands.pauses():
            jobs = commands.statuses(clusters)
            self._note("ask", "" if jobs is not None else NO_ANSWER)
            if jobs is not None:
                return jobs
            time.sleep(seconds)
        raise AssertionError

    def _find(self, array: Array, jobs: dict[str, Status]) -> bool:
        """Find an array whose id was never known, by its name; return whether Slurm has it."""
        from slurm.sbatch import adopt

        found = [job for job, status in jobs.items() if status.name == array.name]
        if found:
            number = re.split("[_@]", found[0])[0]
            adopt(array.folder, number, len(array.elements))
            self.journal.submitted(array, number)
        return bool(found)

    def _settle(self) -> bool:
        """Find out whether Slurm has taken an array without saying so. Return False if that is not known yet."""
        if self.unsure is None:
            return True
        array, doubt = self.unsure
        jobs = commands.statuses([array.cluster])
        if jobs is None:
            return False
        if self._find(array, jobs):
            self._take(array)
        elif doubt.questions:
            doubt.questions -= 1  # a busy controller may show a job a little later
            return False
        else:
            self.journal.forget(array)
            if doubt.printed:
                raise ClusterError(
                    f"{self.description}: {doubt}, and squeue has no such job; mend the wrapper of sbatch"
                )
        self.unsure = None
        return True

    def _take(self, array: Array) -> None:
        """Let the tasks of a submitted array no longer wait."""
        taken = {key for element in array.elements for key in element}
        self.waiting = [key for key in self.waiting if key not in taken]
        self.flying |= {_Place(array, index): set(element) for index, element in enumerate(array.elements)}

    def _note(self, cannot: Literal["submit", "ask"], why: str = "") -> None:
        """Say once, here and for `python -m slurm status`, what cannot be done and why, or that it can be again."""
        if self.obstacles.get(cannot, "").partition("; waiting since ")[0] == why:
            return
        if why:
            self.obstacles[cannot] = f"{why}; waiting since {time.strftime('%F %T')}"
            stop = "Ctrl-C ends the wait, and jobs stay in the queue"
            print(f"{self.description}: {self.obstacles[cannot]}; {stop}", flush=True)
        else:
            del self.obstacles[cannot]
            print(f"{self.description}: Slurm answers, and it goes on", flush=True)
        self.journal.waits(slug(self.description), "; ".join(self.obstacles.values()))

    def _submit(self) -> bool:
        """Submit the waiting tasks. Return False if Slurm does not take them now; they keep waiting then."""
        groups: dict[tuple[float, bool], list[str]] = defaultdict(list)
        for key in self.waiting:
            groups[self.memory_gb[key], self.attempts[key] > 0].append(key)
        for (memory_gb, again), keys in groups.items():
            size = 1 if again else self.resources.tasks_per_job  # a task that was lost gets a job for itself
            elements = [keys[start : start + size] for start in range(0, len(keys), size)]
            most = self.site.array_size
            arrays = [elements[start : start + most] for start in range(0, len(elements), most)]
            chains = min(self.resources.parallel, len(arrays))
            submitted: list[Array] = []
            for number, part in enumerate(arrays):
                # `parallel` holds for all arrays together. They share it; if it is too small, they wait for each other.
                before = submitted[number - chains] if number >= chains else None
                share = (self.resources.parallel + chains - 1 - number % chains) // chains
                array = self._submit_array(part, memory_gb, share, before)
                if array is None:
                    return False
                submitted.append(array)
                self._take(array)
        return True

    def _submit_array(
        self, elements: list[list[str]], memory_gb: float, parallel: int, before: Array | None
    ) -> Array | None:
        asked = self.resources.job(memory_gb)
        array = self.journal.new_array(slug(self.description), elements, asked, self.site.cluster)
        executor = make_executor(array, self.site, parallel, snapshot(), self.bad_nodes, before)
        calls = [
            Element([self.tasks[key] for key in keys], array.folder, index, array.asked)
            for index, keys in enumerate(elements)
        ]
        try:
            job = executor.send(calls)
        except Unanswered as doubt:
            self.unsure = array, doubt
            self._note("submit", f"sbatch does not answer as it should: {doubt}" * (not doubt.printed) or str(doubt))
            return None
        except Limited as reason:
            self.journal.forget(array)
            smaller = f"; `max_array` in the site's file makes arrays smaller than {len(elements)}" * (
                len(elements) > 1
            )
            self._note("submit", f"Slurm takes no more jobs now: {reason}{smaller}")
            return None
        except Refused as reason:
            self.journal.forget(array)
            if self.bad_nodes and "not available" in str(reason):
                self.bad_nodes.clear()  # none is left without them
                return None
            raise ClusterError(f"{self.description}: sbatch refuses the jobs: {reason}") from None
        self.journal.submitted(array, job)
        return array

    def _read_outputs(self) -> None:
        """Note which tasks are done: those whose folder exists, even if the queue differs."""
        done, failures = names(self.root), self.journal.failures()
        for place, keys in list(self.flying.items()):
            for key in keys & failures - done:
                self._retry(place, key, self.journal.failure(key))
            keys -= failures | done
            if not keys:
                del self.flying[place]

    def _read_queue(self) -> float:
        """Handle jobs that ended without output; return the seconds to wait until the next question."""
        jobs = commands.statuses({place.array.cluster for place in self.flying})
        self._note("ask", "" if jobs is not None else NO_ANSWER)
        if jobs is None:
            return 5  # which says nothing about the jobs
        self._name_lasting(jobs)
        gone = []
        for place in list(self.flying):
            status = jobs.get(place.id)
            if status and status.stuck:
                commands.cancel([place.id])
                self.bad_nodes |= {commands.first_node(status.node)} - {""}
                gone.append(place)
            elif status and not status.ended:
                self.absent[place] = 0
            else:
                self.absent[place] += 1
                # Outputs may become visible a little later than the end of their job.
                if self.absent[place] > 1:
                    gone.append(place)
        if gone:
            forgotten = commands.history(place.id for place in gone if place.id not in jobs)
            self._read_outputs()
            for place in gone:
                if place in self.flying:
                    self._ended(place, jobs.get(place.id) or forgotten.get(place.id))
        return 2 if any(self.absent[place] for place in self.flying) else next(self.slowly)

    def _name_lasting(self, jobs: dict[str, Status]) -> None:
        """Name the jobs that may never start, once for each remedy."""
        queued = [status for place in self.flying if (status := jobs.get(place.id)) and status.remedy]
        for remedy in {status.remedy: None for status in queued}:
            if remedy not in self.named:
                self.named.add(remedy)
                alike = [status.reason for status in queued if status.remedy == remedy]
                print(
                    f"{self.description}: {len(alike)} jobs may never start, as Slurm says {alike[0]}: {remedy}; "
                    f"`python -m slurm cancel {shlex.quote(self.description)}` ends them",
                    flush=True,
                )

    def _ended(self, place: _Place, status: Status | None) -> None:
        """Find out why a job ended with undone tasks, and retry or fail them."""
        keys, now = self.flying.pop(place), place.array.now(place.index)
        lines = tail(place.array.log(place.index))
        node = commands.first_node(status.node if status else "") or now.get("node", "")
        state = status.state if status else "UNKNOWN"
        if (place.array.folder / "cancelled").exists() or state == "CANCELLED":
            kind, reason = "cancelled", "its job was cancelled"
        elif state == "OUT_OF_MEMORY" or any(OUT_OF_MEMORY.search(line) for line in lines):
            kind, reason = "memory", f"out of memory (asked for {place.array.asked['memory_gb']:g} GB)"
        elif state == "TIMEOUT" or any("DUE TO TIME LIMIT" in line for line in lines):
            kind, reason = "time", f"not done in {place.array.asked['minutes']} minutes; raise `minutes` of its stage"
        elif state == "PREEMPTED":
            kind, reason = "preempted", "preempted"
        elif state in ("NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED") or not now:
            kind, reason = "node", f"its node failed ({node or 'unknown'})" if now else "its job ended before it began"
            self.bad_nodes |= {node} - {""}
        else:
            kind, reason = "killed", f"its job ended without a result (killed?) on {node or 'an unknown node'}"
        for key in place.array.elements[place.index]:  # in their order
            if key not in keys:
                continue
            # Only the task that was running has used up an attempt.
            counts = kind != "preempted" and (not now or now["key"] == key or now["key"] not in keys)
            failure = {"reason": reason, "kind": kind, "again": kind != "cancelled", "lines": lines}
            self._retry(place, key, failure, counts)

    def _retry(self, place: _Place, key: str, failure: dict[str, Any], counts: bool = True) -> None:
        self.attempts[key] += counts
        if failure["kind"] == "memory":
            self.memory_gb[key] *= 2
        if failure["again"] and self.attempts[key] <= self.resources.retries:
            self.journal.clear(key)
            self.waiting.append(key)
            return
        if self.attempts[key] > 1:
            failure["reason"] += f", {self.attempts[key]} times"
        self.failed[key] = failure | {"log": place.array.log(place.index)}
        self.journal.fail(key, failure)

    def _error(self) -> TaskError:
        told = [{"name": self.tasks[key].name, **failure} for key, failure in self.failed.items()]
        for failure in told[:5]:
            if failure["lines"]:
                head = f"\n{failure['name']}: last lines of {failure['log']}"
                print(head, *failure["lines"], sep="\n  ", file=sys.stderr)
        more = f" (and {len(told) - 1} more: `python -m slurm status`)" if told[1:] else ""
        return TaskError(f"{self.description}: {told[0]['name']}: {told[0]['reason']}; log: {told[0]['log']}{more}")


def make_executor(
    array: Array, site: Site, parallel: int, code: Path, bad_nodes: Iterable[str] = (), before: Array | None = None
) -> Sbatch:
    """submitit's executor for one array.

    Parameters
    ----------
    parallel : number of elements running at a time.
    code : the folder of packages that the jobs import.
    bad_nodes : nodes not to use.
    before : an array that has to end first.
    """
    exclude = ",".join(filter(None, [site.exclude, *sorted(bad_nodes)]))
    threads = {name: str(array.asked["cpus"]) for name, value in ONE_THREAD.items() if value == "1"}
    ours = {name: value for name, value in os.environ.items() if name.startswith("LORARAR_")}  # also with --export=NONE
    variables = {**ours, **ONE_THREAD, **threads, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(code)}
    return site.executor(
        array.folder,
        array.asked,
        notice=90,
        setup=[f"export {name}={shlex.quote(value)}" for name, value in variables.items()],
        parallel=parallel,
        job_name=array.name,
        exclude=exclude or None,
        dependency=f"afterany:{before.job}" if before else None,
    )


def snapshot(root: Path = Path(), dry: bool = False) -> Path:
    """Copy the Python packages in `root` to a folder named by their content. Jobs run this copy, not later edits.

    With `dry`, only the name of the folder is found.

    Raises
    ------
    ClusterError : the path of the folder cannot be given to Python or Slurm.
    """
    packages = sorted(path.parent for path in root.glob("*/__init__.py"))
    sources = [path for package in packages for path in sorted(package.rglob("*.py"))]
    folder = (root / ".work" / "code" / paths_sha256(sources)[:16]).absolute()
    if bad := re.search(r"[:%\\\n]", str(folder)):
        raise ClusterError(f"{root.absolute()}: {bad[0]!r} in the path means something to PYTHONPATH or Slurm; move it")
    if not folder.exists() and not dry:
        hidden = folder.with_name(f".{folder.name}.{os.getpid()}")
        for path in sources:
            target = hidden / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        hidden.rename(folder)
    return folder
