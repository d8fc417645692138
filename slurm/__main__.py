"""python -m slurm: plan, watch, measure and cancel the tasks on a cluster, and read their logs."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from slurm import monitor, pipeline_job
from slurm.commands import ClusterError
from slurm.task import WORK, read_record

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)


@app.command(context_settings={"ignore_unknown_options": True})
def plan(stage: str, arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Show the tasks of a stage, which are done, the script that would be submitted, and an estimate of hours."""
    command = [sys.executable, "-m", f"stages.{stage}", *(arguments or []), "--plan"]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


@app.command()
def status() -> None:
    """Show how many tasks of every stage are done, running, queued and failed."""
    table = Table("stage", "done", "running", "queued", "failed", "not begun", "time left")
    failed, waits = [], []
    for row in monitor.progress(WORK):
        numbers = (row.done, row.running, row.queued, len(row.failed), row.missing)
        left = "" if not (row.running or row.queued or row.missing) else _duration(row.seconds_left)
        table.add_row(row.description, *map(str, numbers), left)
        waits += [f"{row.description}: {row.waits}"] if row.waits else []
        waits += [f"{row.description}: queued tasks wait, Slurm says: {row.reason}"] if row.reason else []
        failed += [f"{row.description}: {name} failed; python -m slurm logs {name}" for name in row.failed]
    Console().print(table)
    print(*waits, *failed[:20], *([f"and {len(failed) - 20} more"] if len(failed) > 20 else []), sep="\n", end="")


@app.command()
def logs(task: str, follow: Annotated[bool, typer.Option("-f", help="Follow the log as it grows.")] = False) -> None:
    """Print the log of the last job of a task, which is given by its name."""
    log = monitor.log_of(WORK, task)
    if log is None:
        raise ClusterError(
            f"{task}: no job with a log has done a task of this name; `python -m slurm status` lists runs"
        )
    with log.open(encoding="utf-8", errors="replace") as file:
        shutil.copyfileobj(file, sys.stdout)
        while follow:
            sys.stdout.flush()
            time.sleep(1)
            shutil.copyfileobj(file, sys.stdout)


@app.command()
def efficiency() -> None:
    """Compare the time, memory and cores that jobs asked for with those that finished tasks used."""
    table = Table("stage", "tasks", "time used / asked", "memory used / asked", "cores busy / asked")
    for journal in monitor.journals(WORK):
        for run in journal.runs().values():
            records = [record for key in run["tasks"] if (record := read_record(journal.root / key)).get("asked")]
            if records:
                asked = records[-1]["asked"]
                longest = max(record["seconds"] for record in records) / 60
                memory = max(record["memory_mb"] for record in records) / 1024
                busy = statistics.mean(r["cpu_seconds"] / max(r["seconds"], 1e-3) for r in records)
                table.add_row(
                    run["description"],
                    str(len(records)),
                    f"{longest:.1f} / {asked['minutes']} min",
                    f"{memory:.1f} / {asked['memory_gb']:g} GB",
                    f"{busy:.1f} / {asked['cpus']}",
                )
    Console().print(table)


@app.command()
def cancel(stages: Annotated[list[str] | None, typer.Argument(help="As `status` names them; all by default.")] = None):
    """Cancel the jobs of all stages, or of some. Finished tasks stay."""
    print(f"{monitor.cancel(WORK, stages or [])} jobs or arrays cancelled")


@app.command("driver", context_settings={"ignore_unknown_options": True})
def drive(arguments: Annotated[list[str] | None, typer.Argument(help="Of dvc repro.")] = None) -> None:
    """Submit the whole `dvc repro` as one small job, which submits the others."""
    dvc = ["dvc", "repro", *(arguments or [])]
    job = pipeline_job.submit(dvc)
    print(f"job {job}; its log: {pipeline_job.FOLDER / f'{job}_0_log.out'}")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not known yet"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


if __name__ == "__main__":
    try:
        app(standalone_mode=True)
    except ClusterError as error:
        sys.exit(f"error: {error}")
