"""Time and memory of the finished tasks of a run, from the records that they leave below .work."""

from __future__ import annotations

from typing import Any

from slurm.journal import Journal
from slurm.task import read_record
from stages.shared.context import Context
from stages.shared.params import FANNING_OUT

Record = dict[str, Any]
"""name, seconds, cpu_seconds, memory_mb and files of a task."""


def records(context: Context) -> dict[str, list[Record]]:
    """Stage -> records of the tasks of its last run; stages without any, as in a fresh clone, are left out."""
    found: dict[str, list[Record]] = {}
    for name in FANNING_OUT:
        root = context.work / name
        keys = {key for run in Journal(root).runs().values() for key in run["tasks"]}
        known = [record for key in sorted(keys) if (record := read_record(root / key))]
        if known and name != "ranking":
            found[name] = known
    return found
