"""Shows the tasks of a stage, which of them are done, the script that would be submitted, and an estimate of hours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from slurm.fanout import Executor, choose
from slurm.journal import Array, slug
from slurm.monitor import typical_seconds
from slurm.resources import Resources
from slurm.store import Store
from slurm.task import Task, names

SHOWN = 20
"""Number of tasks listed by name."""


def show(
    store: Store,
    tasks: Sequence[Task],
    resources: Resources,
    executor: Executor,
    workers: int,
    description: str,
) -> None:
    """Print what `Store.run` would do with these arguments."""
    unmade = sorted({str(path) for task in tasks for path in task.reads if not Path(path).exists()})
    planned = list(tasks) if unmade else store.plan(tasks)
    missing = planned if unmade else store.missing(planned)  # without its inputs no task has a key, so none is done
    chosen = choose(executor)
    at_once, in_a_row = (resources.parallel, resources.tasks_per_job) if chosen == "slurm" else (workers, 1)
    at_once = 1 if chosen == "inline" else at_once
    table = Table("stage", "tasks", "done", "to do", "where", "hours of work", "hours from start to end")
    done = set() if unmade else {task.key for task in planned} - {task.key for task in missing}
    each = typical_seconds(store.root, done or names(store.root))
    rounds = -(-len(missing) // (at_once * in_a_row))
    lengths = (len(missing), rounds * in_a_row)  # in tasks
    hours = ["not known yet" if each is None else f"{each * length / 3600:.2f}" for length in lengths]
    numbers = (len(planned), len(planned) - len(missing), len(missing))
    table.add_row(description, *map(str, numbers), chosen, *hours)
    Console().print(table)
    limits = f"{resources.minutes} minutes, {resources.memory_gb:g} GB, {resources.cpus} cores, {resources.gpus} GPUs"
    print(f"{description}: each job asks for {limits}")
    if unmade:
        print(f"{description}: {len(unmade)} inputs are not made yet, the first is {unmade[0]}")
    left = [task.name for task in missing]
    if left:
        print("to do:", ", ".join(left[:SHOWN]) + (f", and {len(left) - SHOWN} more" if len(left) > SHOWN else ""))
    if left and chosen == "slurm":
        print(_script(store, resources, description, len(missing)))


def _script(store: Store, resources: Resources, description: str, number: int) -> str:
    from slurm.cluster import make_executor, snapshot
    from slurm.site import Site

    site = Site.here()
    elements = -(-number // resources.tasks_per_job)
    arrays = -(-elements // site.array_size)
    first = Array(store.root.absolute() / ".jobs" / "arrays" / "NEW", [], slug(description), resources.job())
    executor = make_executor(first, site, resources.parallel, snapshot(dry=True))
    text = executor.script(min(elements, site.array_size))
    head = f"{elements} jobs of up to {resources.tasks_per_job} tasks in {arrays} submissions; the first one's script:"
    return f"{head}\n\n{text}"
