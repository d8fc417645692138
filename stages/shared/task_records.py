"""What the finished tasks of a run took: from the records that they leave below .work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slurm.journal import Journal
from slurm.task import read_record
from stages.shared.context import Context

Record = dict[str, Any]
"""name, seconds, cpu_seconds, memory_mb and files of a task."""


def records(context: Context) -> dict[str, list[Record]]:
    """Stage -> records of the tasks of its last run; stages without any, as in a fresh clone, are left out."""
    evaluate = context.params.evaluate
    matrix = [f" {method} {split}" for split in evaluate.splits for method in evaluate.methods]
    stages = {name: [""] for name in ("bank", "hypernet", "ziplora", "joint", "judge", "quality")}
    found: dict[str, list[Record]] = {}
    for stage, endings in (stages | {"generate": matrix, "score": matrix}).items():
        root = Path(".work") / context.base / stage
        wanted = {f"{stage}{ending}" for ending in endings}
        runs = [run for run in Journal(root).runs().values() if run.get("description") in wanted]
        keys = {key for run in runs for key in run["tasks"]}
        known = [record for key in sorted(keys) if (record := read_record(root / key))]
        if known:
            found[stage] = known
    return found
