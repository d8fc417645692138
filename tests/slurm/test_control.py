"""python -m slurm: what is seen of runs, also of very large ones, and the job that drives them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_slurm import FakeSlurm, Job
from submitit.core.utils import DelayedSubmission
from typer.testing import CliRunner

from slurm import commands, dry_run, fanout, job, monitor, pipeline_job
from slurm.__main__ import app
from slurm.commands import ClusterError
from slurm.journal import Journal, slug
from slurm.resources import Resources
from slurm.site import Site, without_job
from slurm.store import Store
from slurm.task import Task, TaskError, perform

HERE = Path(__file__).parents[2]
ROOT = Path(".work/lab/texts")
SMALL = Resources(minutes=10, memory_gb=2, cpus=1, gpus=0, parallel=100, retries=0, tasks_per_job=2)


@dataclass(frozen=True)
class Write:
    text: str

    def run(self, folder: Path) -> None:
        if self.text == "bad":
            raise ValueError("bad text")
        (folder / "text").write_text(self.text)


def tasks(number: int) -> list[Task]:
    return [Task(f"t{index}", Write(str(index))) for index in range(number)]


def command(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "120"})
    assert result.exception is None, result.exception
    return result.output


def row(table: str) -> list[str]:
    """Cells of the first row below the head."""
    return [cell.strip() for cell in table.splitlines()[3].strip("│").split("│")]


def test_status_counts_done_running_queued_and_failed_tasks_and_says_why_some_wait(fake: FakeSlurm) -> None:
    def look() -> None:
        if len(fake.waits) == 2:
            running, waiting = fake.jobs["101_2"], fake.jobs["101_3"]
            running.state, waiting.reason = "RUNNING", "QOSMaxCpuPerUserLimit"
            job.write_json(running.folder / "2.now", {"key": list(journal_keys())[4], "node": "n1"})
            seen.append(command("status"))
            running.state, waiting.reason = "PENDING", "None"

    seen: list[str] = []
    fake.at_once, fake.on_wait = 2, look
    with pytest.raises(TaskError):
        Store(ROOT, "").run([Task("bad", Write("bad")), *tasks(6)], SMALL, "texts", "slurm")
    assert row(seen[0])[:6] == ["texts", "3", "1", "2", "1", "0"]
    assert row(seen[0])[6].endswith("min")
    assert "texts: bad failed; python -m slurm logs bad" in seen[0]
    assert "texts: queued tasks wait, Slurm says: QOSMaxCpuPerUserLimit" in seen[0]
    assert row(command("status"))[:6] == ["texts", "6", "0", "0", "1", "0"]


def journal_keys() -> Any:
    return next(iter(Journal(ROOT).runs().values()))["tasks"]


def test_a_task_that_an_interrupted_local_run_has_not_begun_is_seen_as_that(fake: FakeSlurm) -> None:
    with pytest.raises(TaskError):
        Store(ROOT, "").run([Task("bad", Write("bad")), *tasks(2)], SMALL, "texts", "inline")
    assert row(command("status"))[:6] == ["texts", "0", "0", "0", "0", "3"]


def test_plan_shows_what_is_to_do_the_script_and_an_estimate(
    fake: FakeSlurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    store = Store(ROOT, "")
    dry_run.show(store, tasks(3), SMALL, "slurm", 1, "texts")
    assert "not known yet" in capsys.readouterr().out
    store.run(tasks(3), SMALL, "texts", "inline")
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    dry_run.show(store, tasks(15), SMALL, "slurm", 1, "texts")
    output = capsys.readouterr().out
    assert row(output)[:5] == ["texts", "15", "3", "12", "slurm"]
    assert row(output)[5].startswith("0.0")
    assert "to do: t3, t4" in output and "6 jobs of up to 2 tasks in 2 submissions" in output
    assert "#SBATCH --array=0-4%5" in output and "exec " in output
    assert not fake.scripts and sorted(Path().rglob("*")) == before, "nothing is submitted, begun or written"


def test_logs_prints_the_log_of_a_tasks_last_job(fake: FakeSlurm) -> None:
    fake.fates = ["FAILED"]
    with pytest.raises(TaskError):
        Store(ROOT, "").run(tasks(2), SMALL, "texts", "slurm")
    assert command("logs", "t0") == "the log of t0\n"
    with pytest.raises(ClusterError, match="t9: no job with a log"):
        CliRunner().invoke(app, ["logs", "t9"], catch_exceptions=False)


def test_efficiency_compares_asked_and_used(fake: FakeSlurm) -> None:
    Store(ROOT, "").run(tasks(4), SMALL, "texts", "slurm")
    cells = row(command("efficiency"))
    assert cells[:3] == ["texts", "4", "0.0 / 10 min"]
    assert cells[3].endswith("/ 2 GB") and cells[4].endswith("/ 1")


def test_ten_thousand_tasks_are_planned_and_shown_in_seconds_and_little_memory(
    fake: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.max_array = 1001
    number = 10_000
    store, journal = Store(ROOT, ""), Journal(ROOT)
    planned = store.plan(tasks(number))
    journal.begin("texts", planned, "slurm", SMALL)
    for task in planned[:20]:
        perform(task)
    keys = [task.key for task in planned]
    for start in range(0, number, 2000):
        elements = [keys[at : at + 2] for at in range(start, start + 2000, 2)]
        array = journal.new_array(slug("texts"), elements, {})
        journal.submitted(array, str(start))
        ids = [f"{start}_{index}" for index in range(1000)]
        fake.jobs |= {job: Job(job, array.name, array.folder, 0, reason="Priority") for job in ids}
    begin = time.process_time()
    dry_run.show(store, tasks(number), SMALL, "slurm", 1, "texts")
    planning = time.process_time() - begin
    begin = time.process_time()
    (shown,) = monitor.progress(Path(".work"))
    showing = time.process_time() - begin
    assert (shown.done, shown.queued, shown.missing, shown.reason) == (20, 9980, 0, "Priority")
    assert planning < 5 and showing < 5, (planning, showing)
    assert fake.count("squeue") == 1
    tracemalloc.start()
    monitor.progress(Path(".work"))
    first = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    for _ in range(3):
        monitor.progress(Path(".work"))
    assert tracemalloc.get_traced_memory()[1] < 1.1 * first < 50e6, "flat, however often it is asked"
    tracemalloc.stop()


def test_auto_is_slurm_where_sbatch_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer, expected in ((True, "slurm"), (False, "local")):
        monkeypatch.setattr(fanout.commands, "answers", lambda answer=answer: answer)
        assert fanout.choose("auto") == expected and fanout.choose("inline") == "inline"


def test_a_controller_that_stays_away_is_one_line(fake: FakeSlurm) -> None:
    fake.away = 1000
    with pytest.raises(ClusterError, match=r"controller does not answer .*; wait for it, or set `executor: local`"):
        Store(ROOT, "").run(tasks(1), SMALL, "texts", "slurm")


def test_the_example_of_a_site_is_one() -> None:
    example = HERE / "slurm/sites/example.yaml"
    assert Site.load(example).driver.minutes == 2880
    assert yaml.safe_load(example.read_text()).keys() == Site.model_fields.keys(), "it names every key"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("partitoin: gpu", "partitoin: no such key; known: partition, account"),
        ("modules: cuda", "modules: Input should be a valid list"),
        ("a: [", "not YAML"),
        ("- a", "should be keys with values"),
        ("driver: {minutse: 3}", "driver.minutse: no such key; known: minutes, memory_gb"),
        ("sbatch: {exclusive: false}", "sbatch.exclusive: should be `true`, a number, text, or `null`"),
        ("sbatch: {mem: '{memory}'}", "sbatch: mem: no number is called {memory}; known: minutes, cpus"),
        ("clusters: x,y", "clusters: clusters: 'x,y': name one cluster"),
    ],
)
def test_a_mistake_in_a_site_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(text)
    with pytest.raises(ClusterError) as caught:
        Site.load(path)
    assert str(caught.value).startswith(f"{path}: ") and expected in str(caught.value)


def test_the_driver_is_one_small_job_that_slurm_requeues(fake: FakeSlurm) -> None:
    assert "job 101; its log: .work/driver/101_0_log.out" in command("driver", "bank", "--force")
    (script,) = fake.scripts
    for line in ("--time=2880", "--requeue", "--signal=B:USR2@60", "--cpus-per-task=2"):
        assert f"#SBATCH {line}\n" in script
    assert "srun" not in script


def test_the_driver_knows_its_site_where_it_runs(fake: FakeSlurm) -> None:
    command("driver")
    pickled = DelayedSubmission.load(Path(".work/driver/101_submitted.pkl")).function
    assert pickled == pipeline_job.Command(["dvc", "repro"], "lab")


@pytest.mark.parametrize("words", [["driver"], ["cancel", "texts"], ["cancel", "text"]])
def test_without_slurm_or_a_stage_of_that_name_there_is_one_line_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    begin = time.monotonic()
    with pytest.raises(ClusterError) as caught:
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert time.monotonic() - begin < 2 and "\n" not in str(caught.value)
    expected = "driver: sbatch is not on PATH" if words == ["driver"] else f"{words[1]}: no stage of this name was run"
    assert str(caught.value).startswith(expected)


def test_cancel_of_an_unknown_stage_cancels_nothing(fake: FakeSlurm) -> None:
    Store(ROOT, "").run(tasks(1), SMALL, "texts", "slurm")
    with pytest.raises(ClusterError, match="text: no stage of this name was run; known: texts"):
        CliRunner().invoke(app, ["cancel", "text"], catch_exceptions=False)
    assert not fake.count("scancel")


def test_slurm_asked_for_where_there_is_none_is_one_line_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    commands.configuration.cache_clear()
    with pytest.raises(ClusterError, match=r"scontrol: not on PATH, .* or set `executor: local`"):
        Store(ROOT, "").run(tasks(1), SMALL, "texts", "slurm")


@pytest.mark.parametrize("below", [".dvc/tmp/exps/tmp12", ".work/experiments/tree"])
def test_an_untracked_site_is_seen_from_a_clone_inside_the_repository(
    fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    Path("slurm/sites").mkdir(parents=True)
    Path("slurm/sites/lab.yaml").write_text("partition: mine\n")
    Path(below).mkdir(parents=True)
    monkeypatch.chdir(below)
    assert Site.here().partition == "mine"


def test_jobs_submitted_from_a_job_inherit_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    users = {"SLURM_CONF", "SLURM_CLUSTERS", "SBATCH_PARTITION", "SBATCH_ACCOUNT"}
    for name in {"SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SLURM_CLUSTER_NAME", "SBATCH_CPU_BIND_TYPE", *users}:
        monkeypatch.setenv(name, "1")
    assert {name for name in without_job() if name.startswith(("SLURM", "SBATCH"))} == users


SLEEPER = """
import time
try:
    time.sleep(60)
except KeyboardInterrupt:
    open("interrupted", "w").close()
"""


def test_a_driver_whose_time_is_up_interrupts_and_is_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sleeper.py").write_text(SLEEPER.replace("try:", "open('ready', 'w').close()\ntry:"))
    requeued: list[bool] = []
    monkeypatch.setattr(pipeline_job, "requeue", lambda: requeued.append(True))
    monkeypatch.setattr(job, "_received", [])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}

    def notify() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR2)

    threading.Thread(target=notify).start()
    try:
        with pytest.raises(SystemExit):
            pipeline_job.Command(["sleeper"], "lab")()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert (tmp_path / "interrupted").exists() and requeued


def test_a_mistake_on_the_command_line_is_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "slurm", "logs", "dog"]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: dog: no job") and done.stderr.count("\n") == 1
