"""Tasks as jobs of Slurm: what is submitted, what is concluded from what Slurm says, and what is done about it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm

from lorarar.errors import UserError
from slurm import monitor
from slurm.commands import ClusterError, Status
from slurm.journal import Journal
from slurm.resources import Resources
from slurm.store import Store
from slurm.task import Task, TaskError

ROOT = Path(".work/lab/texts")
SMALL = Resources(minutes=10, memory_gb=2, cpus=1, gpus=0, parallel=100, retries=2, tasks_per_job=1)


@dataclass(frozen=True)
class Write:
    text: str

    def run(self, folder: Path) -> None:
        with open("ran", "a") as file:
            file.write(f"{self.text} ")
        if self.text == "bad":
            raise ValueError("bad text")
        if self.text == "wrong":
            raise UserError("a.png: no such picture; make it")
        if self.text == "big" and not Path("more").exists():
            Path("more").touch()
            raise MemoryError
        if self.text == "disk" and not Path("again").exists():
            Path("again").touch()
            raise OSError("stale file handle")
        (folder / "text").write_text(self.text)


def run(*texts: str, description: str = "texts", **resources: Any) -> dict[str, Path]:
    tasks = [Task(text, Write(text)) for text in texts]
    asked = SMALL.model_copy(update=resources)
    return Store(ROOT, "1").run(tasks, asked, description, "slurm")


def ran() -> list[str]:
    return sorted(Path("ran").read_text().split()) if Path("ran").exists() else []


def letters(number: int) -> list[str]:
    return [f"t{index:02}" for index in range(number)]


def test_all_are_done_in_arrays_no_longer_than_the_cluster_takes(fake: FakeSlurm) -> None:
    done = run(*letters(12))
    assert {name: (folder / "text").read_text() for name, folder in done.items()} == {n: n for n in letters(12)}
    assert fake.told("array") == ["0-4%5", "0-4%5", "0-1%2"]
    assert ran() == letters(12)


def test_a_site_may_want_shorter_arrays(fake: FakeSlurm) -> None:
    site({"max_array": 2})
    run(*letters(4))
    assert [array and array.split("%")[0] for array in fake.told("array")] == ["0-1", "0-1"]


def test_parallel_too_small_to_be_shared_makes_arrays_wait_for_each_other(fake: FakeSlurm) -> None:
    run(*letters(20), parallel=3)
    assert [array and array.split("%")[1] for array in fake.told("array")] == ["1", "1", "1", "1"]
    assert fake.told("dependency") == [None, None, None, "afterany:101"]


def test_short_tasks_share_a_job(fake: FakeSlurm) -> None:
    run(*letters(12), tasks_per_job=5)
    assert [array and array.split("%")[0] for array in fake.told("array")] == ["0-2"]
    assert ran() == letters(12)


def test_what_is_done_is_not_submitted(fake: FakeSlurm) -> None:
    run(*letters(3))
    run(*letters(4))
    assert fake.told("array") == ["0-2%3", None], "one job more, and a single one is no array"
    assert ran() == letters(4)


@pytest.mark.parametrize(
    "fate", ["FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "PREEMPTED", "FORGOTTEN", "LAUNCH"]
)
def test_a_task_whose_job_was_lost_is_begun_again_and_the_others_are_not(fake: FakeSlurm, fate: str) -> None:
    fake.fates = [fate]
    run(*letters(3))
    assert ran() == letters(3)
    assert len(fake.scripts) == 2
    assert fake.told("mem") == ["2048M", "4096M" if fate == "OUT_OF_MEMORY" else "2048M"]
    assert fake.told("exclude") == [None, "n1" if fate in ("NODE_FAIL", "LAUNCH") else None]


def test_a_job_lost_with_several_tasks_costs_an_attempt_to_the_one_it_was_at(fake: FakeSlurm) -> None:
    fake.fates = ["FAILED", "FAILED", "COMPLETED", "COMPLETED"]
    with pytest.raises(TaskError, match="t00"):
        run(*letters(3), tasks_per_job=3, retries=0)
    # Only t00 is given up: the job that was resubmitted for the two others is lost at t01.
    assert Journal(ROOT).failures() and ran() == ["t02"]


def test_after_its_retries_a_task_is_told_with_the_end_of_its_log_while_the_others_are_done(
    fake: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.fates = ["FAILED", "COMPLETED", "FAILED", "FAILED"]
    with pytest.raises(
        TaskError, match=r"texts: t00: its job ended without a result .* on n1, 3 times; log: .*_log\.out"
    ):
        run(*letters(2))
    assert "the log of t00" in capsys.readouterr().err
    assert ran() == ["t01"]
    run(*letters(2))
    assert ran() == ["t00", "t01"], "a second run tries that one alone"


def test_a_task_that_raises_is_not_begun_again_by_itself(fake: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TaskError, match="texts: bad: bad text; log: "):
        run("bad", "t00", tasks_per_job=2)
    assert "ValueError: bad text" in capsys.readouterr().err
    assert ran() == ["bad", "t00"] and len(fake.scripts) == 1


def test_a_mistake_of_the_user_is_one_line_without_a_traceback(
    fake: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TaskError, match=r"texts: wrong: a\.png: no such picture; make it; log: "):
        run("wrong")
    told = capsys.readouterr()
    assert "error: a.png: no such picture; make it" in told.out, "in the job's log"
    assert "Traceback" not in told.err + told.out and "last lines" not in told.err


@pytest.mark.parametrize(("text", "memory"), [("big", "4096M"), ("disk", "2048M")])
def test_a_task_that_raises_for_want_of_memory_or_of_a_disk_is(fake: FakeSlurm, text: str, memory: str) -> None:
    run(text)
    assert fake.told("mem") == ["2048M", memory]


def test_a_cancelled_job_is_not_submitted_again(fake: FakeSlurm) -> None:
    fake.fates = ["CANCELLED"]
    with pytest.raises(TaskError, match="t00: its job was cancelled"):
        run(*letters(2))
    assert len(fake.scripts) == 1 and ran() == ["t01"]


def test_outputs_count_before_the_queue(fake: FakeSlurm) -> None:
    fake.fates = ["LOST"]
    run("a", "b")
    assert len(fake.scripts) == 1, "a job that the queue has forgotten was done"


def test_the_accounting_is_asked_last_and_only_where_there_is_one(fake: FakeSlurm) -> None:
    fake.fates = ["FORGOTTEN"]
    run("a")
    assert fake.count("sacct") == 0 and fake.told("mem") == ["2048M", "2048M"]


def test_the_accounting_knows_what_the_queue_has_forgotten(fake: FakeSlurm) -> None:
    fake.fates, fake.accounting = ["FORGOTTEN"], {"101": "OUT_OF_MEMORY"}
    run("a")
    assert fake.count("sacct") == 1 and fake.told("mem") == ["2048M", "4096M"]


def test_a_controller_that_does_not_answer_is_no_news(fake: FakeSlurm) -> None:
    fake.at_once = 1

    def leave() -> None:
        fake.away = 3 if len(fake.waits) == 2 else fake.away

    fake.on_wait = leave
    run(*letters(5))
    assert len(fake.scripts) == 1 and ran() == letters(5)


LIMIT = (
    "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)


@pytest.mark.parametrize(
    "reason",
    [
        "Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "Batch job submission failed: Socket timed out on send/recv operation",
        "Batch job submission failed: Unexpected message received",
        "Batch job submission failed: Zero Bytes were transmitted or received",
        f"QOSMaxSubmitJobPerUserLimit\nsbatch: error: {LIMIT}",
        f"AssocMaxSubmitJobLimit\nsbatch: error: {LIMIT}",
        f"AssocGrpSubmitJobsLimit\nsbatch: error: {LIMIT}",
        "MaxJobCount limit from slurm.conf has been reached",
        "Slurm temporarily unable to accept job, sleeping and retrying\nsbatch: error: Batch job submission failed: "
        "Resource temporarily unavailable",
    ],
)
def test_a_refusal_that_passes_is_waited_out_and_told(
    fake: FakeSlurm, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    def look() -> None:
        if len(fake.waits) == 2:
            seen.extend(row.waits for row in monitor.progress(Path(".work")))

    seen: list[str] = []
    fake.refusals, fake.on_wait = [reason] * 3, look
    run("a")
    assert ran() == ["a"] and len(list(Journal(ROOT).arrays())) == 1 and len(fake.scripts) == 1
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("texts: ")]
    first = reason.partition("\n")[0]
    assert len(told) == 2 and first in told[0] and re.search(r"waiting since \d{4}-.*; Ctrl-C ends the wait", told[0])
    assert told[1] == "texts: Slurm answers, and it goes on"
    assert (
        len(seen) == 1 and first in seen[0] and "waiting since " in seen[0] and f"process {os.getpid()} on" in seen[0]
    )
    assert not next(iter(monitor.progress(Path(".work")))).waits, "it is over"


@pytest.mark.parametrize(
    "reason",
    [
        "invalid partition specified: gpuu\nsbatch: error: Batch job submission failed: Invalid partition name",
        "Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
        f"QOSMaxWallDurationPerJobLimit\nsbatch: error: {LIMIT}",
        f"AssocMaxWallDurationPerJobLimit\nsbatch: error: {LIMIT}",
        "Memory limit per node exceeded\nsbatch: error: Memory required by task is not available",
        "unrecognized option '--mmem=3'\nTry \"sbatch --help\" for more information",
    ],
)
def test_any_other_refusal_ends_the_run_at_once_with_all_of_its_lines(fake: FakeSlurm, reason: str) -> None:
    fake.refusals = [reason] * 2
    with pytest.raises(ClusterError) as caught:
        run("a")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("texts: sbatch refuses the jobs: ") and not fake.waits
    assert all(part.removeprefix("sbatch: error: ") in line for part in reason.splitlines())


@pytest.mark.parametrize(
    ("answer", "fine"),
    [("{}", True), ("{};x", True), ("wrapper 2.0\n{}", True), ("Submitted batch job {} on cluster x", True)],
)
def test_the_id_may_be_all_that_sbatch_prints(fake: FakeSlurm, answer: str, fine: bool) -> None:
    fake.answer = answer
    run("a", "b")
    assert ran() == ["a", "b"] and len(fake.scripts) == 1


def test_a_job_whose_id_was_not_printed_is_found_by_its_name(fake: FakeSlurm) -> None:
    fake.answer = "thank you"
    run("a", "b")
    assert ran() == ["a", "b"] and len(fake.scripts) == 1


def test_an_answer_without_an_id_and_without_a_job_is_an_error(fake: FakeSlurm) -> None:
    fake.answer, fake.on_wait = "thank you", lambda: fake.jobs.clear()
    with pytest.raises(ClusterError, match=r"sbatch printed no job id, but 'thank you', and squeue has no such job"):
        run("a")
    assert len(fake.scripts) == 1


def test_a_job_that_slurm_took_without_an_answer_is_not_submitted_again(fake: FakeSlurm) -> None:
    fake.taken_without_answer = 1
    run("a", "b")
    assert ran() == ["a", "b"] and len(fake.scripts) == 1


def test_a_driver_killed_while_sbatch_ran_leaves_a_job_that_the_next_one_adopts(fake: FakeSlurm) -> None:
    fake.taken_without_answer, fake.at_once, fake.on_wait = 1, 0, interrupt
    with pytest.raises(KeyboardInterrupt):
        run("a", "b")
    fake.at_once, fake.on_wait = 100, nothing
    run("a", "b")
    assert ran() == ["a", "b"] and len(fake.scripts) == 1


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("PartitionTimeLimit", "lower `minutes`"),
        ("QOSMaxWallDurationPerJobLimit", "lower `minutes`"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "sinfo -R"),
        ("BadConstraints", "`constraint`"),
        ("QOSMaxCpuPerJobLimit", "`cpus`"),
        ("JobHeldUser", "scontrol release"),
    ],
)
def test_jobs_that_may_never_start_are_named_once_with_reason_and_remedy(
    fake: FakeSlurm, capsys: pytest.CaptureFixture[str], reason: str, remedy: str
) -> None:
    def hold() -> None:
        for index in (1, 2):
            fake.jobs[f"101_{index}"].reason = reason if len(fake.waits) < 20 else "None"
        if len(fake.waits) == 10:
            seen.extend(row.reason for row in monitor.progress(Path(".work")))

    seen: list[str] = []
    fake.on_wait = hold
    run(*letters(3))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "may never start" in line]
    assert line.startswith(f"texts: 2 jobs may never start, as Slurm says {reason}: ") and remedy in line
    assert line.endswith("`python -m slurm cancel texts` ends them")
    assert seen[0].startswith(f"{reason}: ") and remedy in seen[0] and seen[0].endswith("they may never start")


def test_reasons_that_pass_are_not_alarming() -> None:
    for reason in ("Priority", "Resources", "QOSMaxCpuPerUserLimit", "JobArrayTaskLimit", "Dependency", "BeginTime"):
        assert not Status("PENDING", reason=reason).remedy


def test_when_all_nodes_are_excluded_they_are_tried_again(fake: FakeSlurm) -> None:
    fake.fates = ["NODE_FAIL"]

    def refuse() -> None:
        if len(fake.scripts) == 1 and len(fake.waits) == 2:
            fake.refusals = ["Requested node configuration is not available"]

    fake.on_wait = refuse
    run("a")
    assert fake.told("exclude") == [None, None] and ran() == ["a"]


def test_questions_grow_rare_and_do_not_grow_with_the_tasks(fake: FakeSlurm) -> None:
    fake.max_array, fake.at_once = 1001, 0
    number = 50

    def go() -> None:
        if fake.clock > 3600:
            fake.at_once = number

    fake.on_wait = go
    run(*letters(number))
    assert fake.waits[0] == 2 and max(fake.waits) == 60
    assert fake.count("squeue") < 100, "an hour of waiting, and a question a minute at most"


def test_a_new_driver_waits_for_the_jobs_of_one_that_died(fake: FakeSlurm) -> None:
    fake.at_once, fake.on_wait = 0, interrupt
    with pytest.raises(KeyboardInterrupt):
        run(*letters(7))
    assert len(fake.scripts) == 2
    fake.at_once, fake.on_wait = 100, nothing
    run(*letters(8))
    assert len(fake.scripts) == 3 and ran() == letters(8)
    assert fake.told("array")[2] is None, "the eighth is all that was missing"


@pytest.mark.parametrize("submitted", [True, False])
def test_a_driver_that_died_while_it_submitted_leaves_no_doubt(fake: FakeSlurm, submitted: bool) -> None:
    fake.at_once, fake.on_wait = 0, interrupt
    with pytest.raises(KeyboardInterrupt):
        run("a", "b")
    (array,) = Journal(ROOT).arrays()
    (array.folder / "job.json").unlink()
    if not submitted:
        fake.jobs.clear()
    fake.at_once, fake.on_wait = 100, nothing
    run("a", "b")
    assert len(fake.scripts) == (1 if submitted else 2) and ran() == ["a", "b"]


def test_what_was_in_flight_when_the_driver_died_is_not_swept_away(fake: FakeSlurm) -> None:
    fake.at_once, fake.on_wait = 0, interrupt
    with pytest.raises(KeyboardInterrupt):
        run("a")
    key = next(iter(Journal(ROOT).in_flight()))
    for name in (f".{key}.node7-12", ".gone.node7-13"):
        (ROOT / name).mkdir()
    fake.at_once, fake.on_wait = 0, interrupt
    with pytest.raises(KeyboardInterrupt):
        run("b", description="others")
    assert (ROOT / f".{key}.node7-12").exists() and not (ROOT / ".gone.node7-13").exists()


def test_cancel_ends_the_jobs_and_tells_their_driver(fake: FakeSlurm) -> None:
    fake.at_once = 1

    def cancel() -> None:
        if len(fake.waits) == 3:
            assert monitor.cancel(Path(".work"), ["texts"]) == 1
            fake.jobs = {}  # as if long ago, so that only our own note is left

    fake.on_wait = cancel
    with pytest.raises(TaskError, match="its job was cancelled"):
        run(*letters(5))
    assert len(fake.scripts) == 1


def test_the_script_says_what_site_and_stage_ask_for(fake: FakeSlurm) -> None:
    site(
        {
            "partition": "gpu",
            "account": "us",
            "wckey": "paper",
            "modules": ["cuda"],
            "setup": ["ulimit -c 0"],
            "python": "apptainer exec x.sif python",
            "sbatch": {"nice": 5},
            "exclude": "n9",
        }
    )
    run("a", minutes=90, memory_gb=1.5, cpus=4, gpus=1)
    (script,) = fake.scripts
    for line in (
        "--partition=gpu", "--account=us", "--wckey=paper", "--nice=5", "--exclude=n9", "--time=90", "--mem=1536M",
        "--cpus-per-task=4", "--gpus-per-node=1", "--requeue", "--signal=B:USR2@90", "--open-mode=append",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert "module load cuda\nulimit -c 0\n" in script
    assert "\nexec apptainer exec x.sif python -u -m submitit" in script
    assert "export OMP_NUM_THREADS=4\n" in script and "srun" not in script


@pytest.mark.parametrize(
    ("settings", "there", "absent"),
    [
        ({"sbatch": {"exclusive": True}}, ["--exclusive", "--mem=1536M"], ["--exclusive="]),
        (
            {"sbatch": {"mem": None, "requeue": None, "time": None}},
            ["--cpus-per-task=4"],
            ["--mem", "--requeue", "--time"],
        ),
        ({"sbatch": {"gpus_per_node": None, "gres": "gpu:a100:{gpus}"}}, ["--gres=gpu:a100:2"], ["--gpus-per-node"]),
        ({"sbatch_gpu": {"gpus-per-node": "a100:{gpus}"}}, ["--gpus-per-node=a100:2"], ["--gpus-per-node=2"]),
        ({"sbatch": {"mem": None, "mem-per-cpu": "{memory_mb_per_cpu}M"}}, ["--mem-per-cpu=384M"], ["--mem="]),
        ({"partition": "cpu", "sbatch_gpu": {"partition": "gpu"}}, ["--partition=gpu"], ["--partition=cpu"]),
        ({"reservation": "mine", "clusters": "x"}, ["--reservation=mine", "--clusters=x"], []),
    ],
)
def test_a_site_may_change_every_option(
    fake: FakeSlurm, settings: dict[str, Any], there: list[str], absent: list[str]
) -> None:
    site(settings)
    run("a", memory_gb=1.5, cpus=4, gpus=2)
    (script,) = fake.scripts
    assert all(f"#SBATCH {line}\n" in script for line in there)
    assert not any(f"#SBATCH {line}" in script for line in absent)


def test_options_for_gpus_are_not_asked_for_without_them(fake: FakeSlurm) -> None:
    site({"partition": "cpu", "sbatch_gpu": {"partition": "gpu"}})
    run("a")
    assert fake.told("partition") == ["cpu"]


@pytest.mark.parametrize("where", ["site", "SBATCH_CLUSTERS", "SLURM_CLUSTERS"])
def test_another_cluster_is_asked_itself_and_its_jobs_stay_its_own(
    fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "site":
        site({"clusters": "x"})
    else:
        monkeypatch.setenv(where, "x")
    fake.at_once, fake.on_wait = 0, interrupt
    with pytest.raises(KeyboardInterrupt):
        run("a", "b")
    if where == "site":
        Path("slurm/sites/lab.yaml").unlink()
    else:
        monkeypatch.delenv(where)
    fake.at_once, fake.on_wait, fake.fates, fake.accounting = 100, nothing, ["FORGOTTEN"], {"101_0": "OUT_OF_MEMORY"}
    run("a", "b")
    assert fake.told("mem") == ["2048M", "4096M"] and ran() == ["a", "b"], "submitted again after its loss only"
    about_first = [words for words in fake.asked if words[0] in ("squeue", "sacct")]
    assert all(words[1:3] == ("-M", "x") for words in about_first if words[0] == "sacct")
    assert ("squeue", "-M", "x") in {words[:3] for words in about_first}


def test_cancel_reaches_the_cluster_of_the_jobs(fake: FakeSlurm) -> None:
    site({"clusters": "x"})
    fake.at_once, fake.on_wait = 0, interrupt
    with pytest.raises(KeyboardInterrupt):
        run("a", "b")
    assert monitor.cancel(Path(".work")) == 1
    assert fake.asked[-1] == ("scancel", "-M", "x", "101")


def test_without_a_file_for_the_site_nothing_particular_is_asked(fake: FakeSlurm) -> None:
    run("a")
    assert fake.told("partition") == fake.told("wckey") == fake.told("gpus-per-node") == [None]


def test_jobs_run_a_snapshot_of_the_code(fake: FakeSlurm) -> None:
    source = Path("package/__init__.py")
    source.write_text("x = 1\n")
    run("a")
    source.write_text("x = 2\n")
    run("b")
    folders = [
        next(Path(line.partition("=")[2]) for line in script.splitlines() if line.startswith("export PYTHONPATH="))
        for script in fake.scripts
    ]
    assert [(folder / source).read_text() for folder in folders] == ["x = 1\n", "x = 2\n"]
    assert all("export PYTHONSAFEPATH=1" in script for script in fake.scripts), (
        "the working folder comes first otherwise"
    )


def site(settings: dict[str, Any]) -> None:
    import yaml

    path = Path("slurm/sites/lab.yaml")
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(settings))


def interrupt() -> None:
    raise KeyboardInterrupt


def nothing() -> None:
    pass
