"""Whatever a real cluster does to jobs, every output is right in the end, and nothing complete is done twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time

import pytest
from lab import Cluster, Project, call, until

pytestmark = pytest.mark.timeout(400)


def named(number: int, **arguments) -> dict[str, dict]:
    return {f"t{index}": arguments for index in range(number)}


def complete_once(project: Project, number: int) -> None:
    """All outputs are there, and each task came to its end once."""
    assert len(project.results()) == number
    ends = [name for (name,) in project.notes("end")]
    assert len(ends) == len(set(ends)) == number


def test_twelve_tasks_at_five_to_an_array_make_three_arrays(project: Project) -> None:
    project.run(named(12, seconds=0.3))
    complete_once(project, 12)
    assert len(project.jobs()) == 3
    assert "12 of 12 were done before" in project.run(named(12, seconds=0.3))
    assert len(project.jobs()) == 3, "nothing is submitted for what is done"


def test_parallel_holds_over_all_arrays(project: Project) -> None:
    driver = project.begin(named(12, seconds=0.3), parallel=1)
    most = 0
    while driver.poll() is None:
        most = max(most, call("squeue", "-h", "-t", "running").count("\n"))
        time.sleep(0.2)
    assert project.finish(driver)[0] == 0
    complete_once(project, 12)
    assert most == 1


@pytest.mark.quiet
def test_forty_short_tasks_reach_the_ideal_throughput_beyond_slurms_own_start(project: Project) -> None:
    """How long plain jobs take to begin is the measure of what Slurm itself takes."""
    seconds, each = 1.0, 20
    ideal = seconds * each
    script = project.folder / "plain.sh"
    script.write_text("#!/bin/sh\ndate +%s.%N >>began\n")
    begin = time.time()
    call("sbatch", "--wait", "--array=0-1", "--mem=100M", "-o", "/dev/null", str(script), cwd=project.folder)
    start = max(map(float, (project.folder / "began").read_text().split())) - begin
    project.run(named(40, seconds=seconds), tasks_per_job=each)
    complete_once(project, 40)
    last = max(path.stat().st_mtime for path in project.folder.glob(".work/lab/count/*/number"))
    submitted = min(path.stat().st_mtime for path in project.folder.glob(".work/**/*_submission.sh"))
    share = ideal / (last - submitted - start)
    took = last - submitted
    print(f"\nSlurm's start {start:.1f} s, submission to last output {took:.1f} s: {share:.0%} of the ideal beyond it")
    assert share > 0.9


def test_a_task_killed_in_the_middle_is_begun_again_from_its_state(project: Project) -> None:
    project.run({"t0": {"seconds": 1}, "t1": {"seconds": 1, "die": 1}, "t2": {"seconds": 1}})
    complete_once(project, 3)
    begun = [int(done) for name, done, *_ in project.notes("begin") if name == "t1"]
    assert begun == [0, 5]


def test_a_task_that_ran_out_of_memory_gets_more(project: Project) -> None:
    project.run({"t0": {"seconds": 0.1, "eat": 1500}}, memory_gb=0.5)
    complete_once(project, 1)
    asked = [json.loads(path.read_text())["asked"] for path in project.folder.glob(".work/**/array.json")]
    assert sorted(resources["memory_gb"] for resources in asked) == [0.5, 1, 2]


def test_a_task_that_always_fails_is_told_with_its_log_and_alone_tried_again(project: Project) -> None:
    tasks = {**named(4, seconds=0.3), "bad": {"fail": True}}
    status, output = project.finish(project.begin(tasks))
    assert status == 1
    complete_once(project, 4)
    assert re.search(r"error: count: bad: it always fails; log: .*_log\.out", output)
    assert "ValueError: it always fails" in output
    begun = len(project.notes("begin"))
    assert "failed" in project.slurm("status") and "it always fails" in project.slurm("logs", "bad")
    status, output = project.finish(project.begin(tasks))
    assert status == 1 and "4 of 5 were done before" in output
    assert [name for name, *_ in project.notes("begin")[begun:]] == ["bad"]


def test_a_task_killed_each_time_is_given_up_after_its_retries(project: Project) -> None:
    status, output = project.finish(project.begin({"bad": {"eat": 10**6}}, retries=1))
    assert status == 1 and "bad: out of memory" in output and "2 times" in output
    assert "oom-kill event" in output, "the last lines of the log are shown"
    assert len(project.notes("begin")) == 2


def test_a_driver_that_was_killed_is_replaced_and_nothing_is_submitted_twice(project: Project) -> None:
    driver = project.begin(named(6, seconds=3))
    until(lambda: project.notes("begin"))
    driver.kill()
    driver.communicate()
    jobs = project.jobs()
    output = project.run(named(6, seconds=3))
    assert "tasks were in the queue already" in output
    assert project.jobs() == jobs
    complete_once(project, 6)


def test_ctrl_c_leaves_the_jobs_and_cancel_ends_them(project: Project) -> None:
    driver = project.begin(named(4, seconds=30))
    until(lambda: len(project.notes("begin")) == 2)
    os.killpg(driver.pid, signal.SIGINT)
    _, output = project.finish(driver)
    assert "4 tasks in 1 jobs stay in the queue" in output
    assert call("squeue", "-h", "-r").count("\n") == 4
    rows = project.slurm("status")
    assert re.search(r"count\W+0\W+2\W+2\W+0\W+0", rows), rows
    driver = project.begin(named(4, seconds=30))
    time.sleep(3)
    assert "1 jobs or arrays cancelled" in project.slurm("cancel")
    status, output = project.finish(driver)
    assert status == 1 and "its job was cancelled" in output
    assert len(project.jobs()) == 1, "what was cancelled on purpose is not begun again"


def test_a_controller_that_goes_away_for_a_while_is_waited_for(project: Project, cluster: Cluster) -> None:
    driver = project.begin(named(6, seconds=8))
    until(lambda: len(project.notes("begin")) == 2)
    cluster.save(project.jobs()[0])
    cluster.kill("slurmctld")
    time.sleep(8)
    cluster.start("slurmctld")
    status, output = project.finish(driver)
    assert status == 0, output
    complete_once(project, 6)


def test_a_slurmd_that_is_killed_and_started_again_costs_nothing(project: Project, cluster: Cluster) -> None:
    """Its task goes on without it."""
    driver = project.begin(named(4, seconds=6))
    until(lambda: len(project.notes("begin")) == 2)
    cluster.kill("n1")
    try:
        until(lambda: len(project.notes("end")) == 2)
    finally:
        cluster.start("n1")
    status, output = project.finish(driver)
    assert status == 0, output
    complete_once(project, 4)
    assert len(project.notes("begin")) == 4


def test_a_node_that_dies_does_not_keep_its_tasks(project: Project, cluster: Cluster) -> None:
    driver = project.begin(named(4, seconds=6))
    until(lambda: len(project.notes("begin")) == 2)
    cluster.kill("n1")
    for pid in [pid for *_, pid in project.notes("begin")]:
        command = subprocess.run(["ps", "-o", "cmd=", "-p", pid], capture_output=True, text=True, check=False).stdout
        node = call("sh", "-c", f"tr '\\0' '\\n' </proc/{pid}/environ | grep SLURMD_NODENAME")
        if "submitit" in command and "n1" in node:
            os.kill(int(pid), signal.SIGKILL)
    try:
        status, output = project.finish(driver)
    finally:
        cluster.start("n1")
    assert status == 0, output
    complete_once(project, 4)


def test_a_preempting_job_delays_a_task_and_costs_it_no_step(project: Project) -> None:
    driver = project.begin(named(2, seconds=8))
    until(lambda: len(project.notes("begin")) == 2)
    script = project.folder / "urgent.sh"
    script.write_text("#!/bin/sh\nsleep 5\n")
    call("sbatch", "-p", "high", "--mem=100M", "-o", "/dev/null", str(script))
    status, output = project.finish(driver)
    assert status == 0, output
    complete_once(project, 2)
    (stopped,) = project.notes("stop")
    assert [stopped[0], stopped[1]] in [words[:2] for words in project.notes("begin")], "it went on where it stopped"


def test_a_time_limit_shorter_than_the_training_only_makes_it_go_on_later(project: Project) -> None:
    project.run({"t0": {"seconds": 60}}, minutes=1)
    complete_once(project, 1)
    stops = project.notes("stop")
    assert stops, "it was told before the end of its time"
    assert [done for _, done, *_ in project.notes("begin")] == ["0", *(done for _, done in stops)]


def test_code_edited_after_submission_does_not_change_a_queued_task(project: Project) -> None:
    driver = project.begin(named(4, seconds=3))
    until(lambda: len(project.notes("begin")) == 2)
    source = project.folder / "work/tasks.py"
    source.write_text(source.read_text().replace('"number").write_text(', '"number").write_text("edited" + '))
    assert project.finish(driver)[0] == 0
    assert set(project.results().values()) == {"30"}
