"""A dry run: the tasks, those that are done, the script that would be submitted, and an estimate of hours."""

from __future__ import annotations

import tempfile
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
"""Names of tasks that are listed."""


def show(
    store: Store,
    tasks: Sequence[Task],
    resources: Resources,
    executor: Executor,
    workers: int,
    description: str,
) -> None:
    """Print what `Store.run` would do with these arguments."""
    planned = store.plan(tasks)
    missing = store.missing(planned)
    chosen = choose(executor)
    at_once, in_a_row = {"inline": (1, 1), "local": (workers, 1)}.get(
        chosen, (resources.parallel, resources.tasks_per_job)
    )
    table = Table("stage", "tasks", "done", "to do", "where", "hours of work", "hours from start to end")
    done = {task.key for task in planned} - {task.key for task in missing}
    each = typical_seconds(store.root, done or names(store.root))
    work = None if each is None else each * len(missing) / 3600
    rounds = -(-len(missing) // (at_once * in_a_row))
    length = None if each is None else each * rounds * in_a_row / 3600
    table.add_row(
        description, str(len(planned)), str(len(planned) - len(missing)), str(len(missing)), chosen,
        _hours(work), _hours(length),
    )  # fmt: skip
    console = Console()
    console.print(table)
    left = [task.name for task in missing]
    if left:
        print("to do:", ", ".join(left[:SHOWN]) + (f", and {len(left) - SHOWN} more" if len(left) > SHOWN else ""))
    if left and chosen == "slurm":
        print(_script(resources, description, len(missing)))


def _script(resources: Resources, description: str, number: int) -> str:
    from slurm.cluster import make_executor
    from slurm.site import Site

    site = Site.here()
    elements = -(-number // resources.tasks_per_job)
    arrays = -(-elements // site.array_size)
    with tempfile.TemporaryDirectory() as folder:
        array = Array(Path(folder), [], slug(description))
        executor = make_executor(array, resources, resources.memory_gb, resources.parallel, site, set())
        if elements > 1:
            executor.parameters["map_count"] = min(elements, site.array_size)
        text = executor._make_submission_file_text(executor._submitit_command_str, "")
    head = f"{elements} jobs of up to {resources.tasks_per_job} tasks in {arrays} submissions; the first one's script:"
    return f"{head}\n\n{text}"


def _hours(value: float | None) -> str:
    return "not known yet" if value is None else f"{value:.2f}"
