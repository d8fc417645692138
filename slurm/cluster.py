"""Runs tasks as Slurm array jobs and retries those lost to preemption, node failures or time limits."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm import commands
from slurm.commands import ClusterError, Status
from slurm.job import TIME_IS_UP, Element
from slurm.journal import Array, Journal, slug, tail
from slurm.local import ONE_THREAD, progress_bar
from slurm.resources import Resources
from slurm.site import Site
from slurm.task import Task, TaskError, names, paths_sha256

PASSING = re.compile(
    r"unable to contact|timed out|temporarily|connection refused|try again|limit|zero bytes|communication",
    re.IGNORECASE,
)
"""What sbatch says of things that pass: a controller that is away, or as many jobs of one user as are allowed."""

OUT_OF_MEMORY = re.compile(r"oom.?kill|out.of.memory|exceeded.*memory.limit", re.IGNORECASE)
"""What slurmstepd or the kernel write into the log of a job they kill."""


def slurm(tasks: Sequence[Task], resources: Resources, description: str) -> None:
    """Do tasks as jobs: elements of arrays, as many arrays as the cluster's MaxArraySize needs.

    Jobs that an earlier driver has submitted for the same tasks are waited for, not submitted again. On Ctrl-C jobs
    stay in the queue.

    Raises
    ------
    TaskError : a task failed, after all others were done.
    ClusterError : Slurm refuses the jobs.
    """
    ArraySupervisor(tasks, resources, description).run()


@dataclass(frozen=True)
class _Place:
    """Where tasks are: one element of an array."""

    array: Array
    index: int

    @property
    def id(self) -> str:
        return self.array.id(self.index)


class ArraySupervisor:
    """Submits the arrays of one run and watches them until every task is done or has failed for good."""

    def __init__(self, tasks: Sequence[Task], resources: Resources, description: str) -> None:
        self.tasks = {task.key: task for task in tasks}
        self.resources = resources
        self.description = description
        self.root = tasks[0].folder.parent
        self.journal = Journal(self.root)
        self.site = Site.here()
        self.flying: dict[_Place, set[str]] = {}
        self.waiting = list(self.tasks)
        self.absent: Counter[_Place] = Counter()  # how many times in a row the queue did not know it
        self.attempts: Counter[str] = Counter()
        self.memory_gb = dict.fromkeys(self.tasks, resources.memory_gb)
        self.bad_nodes: set[str] = set()
        self.slowly = commands.pauses()
        self.failed: dict[str, tuple[str, list[str], Path | None]] = {}  # reason, last lines, log

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
        self.journal.end(slug(self.description))
        if self.failed:
            raise self._error()

    def _watch(self) -> None:
        left, pauses, look = self._left, commands.pauses(), 0.0
        with progress_bar(self.tasks, self.description, len(self.tasks) - left) as progress:
            while self._left:
                if self.waiting and self._submit():
                    self.slowly = commands.pauses()
                time.sleep(next(pauses))
                self._read_outputs()
                # Files first, and the queue only about what they leave open, ever more rarely.
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
        """Find the jobs of an earlier driver; return how many tasks they have."""
        known = [array for array in self.journal.arrays() if array.run == slug(self.description)]
        if not known:
            return 0
        jobs = _ask_until_answered()
        for array in known:
            if array.job is None:  # the driver died while it submitted: was it before, or after?
                ids = [job for job, status in jobs.items() if status.name == array.name and not status.ended]
                if ids:
                    self.journal.submitted(array, ids[0].partition("_")[0])
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

    def _submit(self) -> bool:
        """Submit what waits and return True; what Slurm does not take just now goes on waiting."""
        groups: dict[tuple[float, bool], list[str]] = defaultdict(list)
        for key in self.waiting:
            groups[self.memory_gb[key], self.attempts[key] > 0].append(key)
        for (memory_gb, again), keys in groups.items():
            size = 1 if again else self.resources.tasks_per_job  # no more company for one that was killed
            elements = [keys[start : start + size] for start in range(0, len(keys), size)]
            most = self.site.array_size
            arrays = [elements[start : start + most] for start in range(0, len(elements), most)]
            chains = min(self.resources.parallel, len(arrays))
            submitted: list[Array] = []
            for number, part in enumerate(arrays):
                # `parallel` holds for all arrays together: they share it, and where it is too small for that, queue up.
                before = submitted[number - chains] if number >= chains else None
                share = (self.resources.parallel + chains - 1 - number % chains) // chains
                array = self._submit_array(part, memory_gb, share, before)
                if array is None:
                    return False
                submitted.append(array)
                taken = {key for element in part for key in element}
                self.waiting = [key for key in self.waiting if key not in taken]
                self.flying |= {_Place(array, index): set(element) for index, element in enumerate(part)}
        return True

    def _submit_array(
        self, elements: list[list[str]], memory_gb: float, parallel: int, before: Array | None
    ) -> Array | None:
        asked = {**self.resources.model_dump(include={"minutes", "cpus", "gpus"}), "memory_gb": memory_gb}
        array = self.journal.new_array(slug(self.description), elements, asked)
        executor = make_executor(array, self.resources, memory_gb, parallel, self.site, self.bad_nodes, before)
        calls = [
            Element([self.tasks[key] for key in keys], array.folder, index, asked)
            for index, keys in enumerate(elements)
        ]
        silence = io.StringIO()  # submitit prints what it also raises
        try:
            with contextlib.redirect_stderr(silence):
                jobs = executor.submit_array(calls)
        except Exception as error:
            self.journal.forget(array)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            if PASSING.search(str(error)):
                return None
            if self.bad_nodes and "not available" in str(error):
                self.bad_nodes.clear()  # none is left without them
                return None
            raise ClusterError(f"{self.description}: sbatch refuses the jobs: {reason}") from None
        self.journal.submitted(array, jobs[0].job_id.partition("_")[0])
        return array

    def _read_outputs(self) -> None:
        """Tasks whose folder is there are done, whatever the queue says."""
        done, failures = names(self.root), self.journal.failures()
        for place, keys in list(self.flying.items()):
            for key in keys & failures - done:
                failure = self.journal.failure(key)
                self._retry(place, key, failure["reason"], failure["kind"], failure["again"], failure["lines"])
            keys -= failures | done
            if not keys:
                del self.flying[place]

    def _read_queue(self) -> float:
        """See to jobs that have ended without output; return seconds until it is worth to ask again."""
        jobs = commands.statuses()
        if jobs is None:
            return 5  # the controller is away: that says nothing about the jobs
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
                # Outputs may be seen a little later than the end of the job that wrote them.
                if self.absent[place] > 1:
                    gone.append(place)
        if gone:
            forgotten = commands.history(place.id for place in gone if place.id not in jobs)
            self._read_outputs()
            for place in gone:
                if place in self.flying:
                    self._ended(place, jobs.get(place.id) or forgotten.get(place.id))
        return 2 if any(self.absent[place] for place in self.flying) else next(self.slowly)

    def _ended(self, place: _Place, status: Status | None) -> None:
        """A job has ended and left tasks undone."""
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
            # The task that was being done has used up an attempt; those that waited for their turn have not.
            counts = kind != "preempted" and (not now or now["key"] == key or now["key"] not in keys)
            self._retry(place, key, reason, kind, kind != "cancelled", lines, counts)

    def _retry(
        self, place: _Place, key: str, reason: str, kind: str, again: bool, lines: list[str], counts: bool = True
    ) -> None:
        self.attempts[key] += counts
        if kind == "memory":
            self.memory_gb[key] = 2 * self.memory_gb[key]
        if again and self.attempts[key] <= self.resources.retries:
            self.journal.clear(key)
            self.waiting.append(key)
            return
        if self.attempts[key] > 1:
            reason += f", {self.attempts[key]} times"
        self.failed[key] = (reason, lines, place.array.log(place.index))
        self.journal.fail(key, {"reason": reason, "kind": kind, "again": again, "lines": lines})

    def _error(self) -> TaskError:
        for key, (_, lines, log) in list(self.failed.items())[:5]:
            if lines:
                print(f"\n{self.tasks[key].name}: last lines of {log}", *lines, sep="\n  ", file=sys.stderr)
        (key, (reason, _, log)), *others = self.failed.items()
        more = f" (and {len(others)} more: `python -m slurm status`)" if others else ""
        return TaskError(f"{self.description}: {self.tasks[key].name}: {reason}; log: {log}{more}")


def make_executor(
    array: Array,
    resources: Resources,
    memory_gb: float,
    parallel: int,
    site: Site,
    bad_nodes: set[str],
    before: Array | None = None,
) -> Any:
    """submitit's executor for one array.

    Parameters
    ----------
    parallel : elements running at a time.
    bad_nodes : nodes to keep away from.
    before : an array that has to end first.
    """
    from submitit import SlurmExecutor

    executor = SlurmExecutor(array.folder, max_num_timeout=0, python=site.interpreter)
    options = site.options()
    # `B:` and `exec` together make the signal reach Python itself; there is no srun that could not be nested.
    notice = min(90, resources.minutes * 15)
    options["additional_parameters"] |= {"signal": f"B:{TIME_IS_UP.name.removeprefix('SIG')}@{notice}"}
    exclude = ",".join(filter(None, [site.exclude, *sorted(bad_nodes)]))
    threads = {name: str(resources.cpus) for name, value in ONE_THREAD.items() if value == "1"}
    variables = {**ONE_THREAD, **threads, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(snapshot())}
    executor.update_parameters(
        **options,
        job_name=array.name,
        time=resources.minutes,
        mem=f"{round(memory_gb * 1024)}M",
        cpus_per_task=resources.cpus,
        gpus_per_node=resources.gpus or None,
        array_parallelism=parallel,
        exclude=exclude or None,
        dependency=f"afterany:{before.job}" if before else None,
        setup=[*site.lines(), *(f"export {name}={value}" for name, value in variables.items())],
        stderr_to_stdout=True,
        use_srun=False,
    )
    return executor


def snapshot(root: Path = Path()) -> Path:
    """A copy of the Python packages in `root`, named by their content: tasks run from it, whatever is edited later."""
    packages = sorted(path.parent for path in root.glob("*/__init__.py"))
    sources = [path for package in packages for path in sorted(package.rglob("*.py"))]
    folder = (root / ".work" / "code" / paths_sha256(sources)[:16]).absolute()
    if not folder.exists():
        hidden = folder.with_name(f".{folder.name}.{os.getpid()}")
        for path in sources:
            target = hidden / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        hidden.rename(folder)
    return folder


def _ask_until_answered() -> dict[str, Status]:
    for seconds in commands.pauses():
        jobs = commands.statuses()
        if jobs is not None:
            return jobs
        time.sleep(seconds)
    raise AssertionError
