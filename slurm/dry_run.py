"""Shows the tasks of a stage, which of them are done, the script that would be submitted, and an estimate of hours."""

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
from slurm.task import WORK, Task, names

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
    planned = store.plan(tasks)
    missing = store.missing(planned)
    chosen = choose(executor)
    at_once, in_a_row = (resources.parallel, resources.tasks_per_job) if chosen == "slurm" else (workers, 1)
    at_once = 1 if chosen == "inline" else at_once
    table = Table("stage", "tasks", "done", "to do", "where", "hours of work", "hours from start to end")
    done = {task.key for task in planned} - {task.key for task in missing}
    each = typical_seconds(store.root, done or names(store.root))
    rounds = -(-len(missing) // (at_once * in_a_row))
    lengths = (len(missing), rounds * in_a_row)  # in tasks
    hours = ["not known yet" if each is None else f"{each * length / 3600:.2f}" for length in lengths]
    numbers = (len(planned), len(planned) - len(missing), len(missing))
    table.add_row(description, *map(str, numbers), chosen, *hours)
    Console().print(table)
    left = [task.name for task in missing]
    if left:
        print("to do:", ", ".join(left[:SHOWN]) + (f", and {len(left) - SHOWN} more" if len(left) > SHOWN else ""))
    if left and chosen == "slurm":
        print(_script(resources, description, len(missing)))


def _script(resources: Resources, description: str, number: int) -> str:
    from submitit.helpers import environment_variables

    from slurm.cluster import make_executor
    from slurm.site import Site

    site = Site.here()
    elements = -(-number // resources.tasks_per_job)
    arrays = -(-elements // site.array_size)
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        executor = make_executor(Array(Path(folder), [], slug(description), resources.job()), site, resources.parallel)
        # submitit gives its script to an sbatch that submits nothing. PATH holds no other: the real one is not found.
        for name in ("sbatch", "srun"):
            command = Path(folder, name)
            command.write_text("#!/bin/sh\necho Submitted batch job 1\n")
            command.chmod(0o755)
        with environment_variables(PATH=Path(folder).absolute()):
            executor.submit_array([print] * min(elements, site.array_size))
        text = Path(folder, "1_submission.sh").read_text()
    head = f"{elements} jobs of up to {resources.tasks_per_job} tasks in {arrays} submissions; the first one's script:"
    return f"{head}\n\n{text}"
