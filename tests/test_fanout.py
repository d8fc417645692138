"""Fan-out and the store of finished tasks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm.fanout import Task, TaskError, fan_out
from slurm.store import Store, fingerprint

ROOT = Path(__file__).parents[1]


def square(number: int) -> tuple[int, str, int]:
    return number**2, os.environ["OMP_NUM_THREADS"], os.getpid()


def refuse(number: int) -> int:
    if number == 1:
        raise ValueError("number 1 is refused\nand a second line")
    return number


def write(folder: Path, text: str) -> None:
    (folder / "text").write_text(text)
    if text == "bad":
        raise ValueError("bad text")


def die() -> None:
    os._exit(7)


def test_results_come_in_the_order_of_the_tasks_from_single_thread_workers() -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    results = fan_out([Task(str(n), {"number": n}) for n in range(5)], square, 2, "squares")
    assert [result[0] for result in results] == [0, 1, 4, 9, 16]
    assert {result[1] for result in results} == {"1"}
    assert os.getpid() not in {result[2] for result in results}
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_no_task_starts_no_worker() -> None:
    assert fan_out([], square, 2, "nothing") == []


def test_the_first_error_is_one_line_that_names_the_task() -> None:
    with pytest.raises(TaskError) as caught:
        fan_out([Task(f"n{n}", {"number": n}) for n in range(3)], refuse, 1, "refusals")
    assert str(caught.value) == "refusals: n1: number 1 is refused"
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_worker_that_dies_is_an_error_not_a_hang() -> None:
    with pytest.raises(TaskError, match="a worker process died"):
        fan_out([Task("only", {})], die, 1, "deaths")


def test_the_store_does_only_what_is_missing(tmp_path: Path) -> None:
    source = tmp_path / "input"
    source.write_text("one")
    store = Store(tmp_path / "store", code="1")

    def run(*texts: str, code: str = "1") -> dict[str, Path]:
        tasks = [(Task(text, {"text": text}), [source]) for text in texts]
        return Store(store.root, code).run(write, tasks, 1, "texts")

    first = run("a", "b")
    assert (first["a"] / "text").read_text() == "a"
    stamp = (first["a"] / "text").stat().st_mtime_ns
    second = run("a", "b", "c")
    assert second["a"] == first["a"] and (second["a"] / "text").stat().st_mtime_ns == stamp
    assert len(list(store.root.iterdir())) == 3
    source.write_text("two")
    assert run("a")["a"] != first["a"], "another input is another task"
    assert run("a", code="2")["a"] != run("a")["a"], "other code is another task"


def test_a_failed_task_leaves_nothing_and_finished_ones_stay(tmp_path: Path) -> None:
    tasks = [(Task(text, {"text": text}), []) for text in ("good", "bad")]
    with pytest.raises(TaskError, match="texts: bad: bad text"):
        Store(tmp_path, code="").run(write, tasks, 1, "texts")
    (kept,) = tmp_path.iterdir()
    assert (kept / "text").read_text() == "good"


def test_fingerprint_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    first = fingerprint([tmp_path])
    assert first == fingerprint([tmp_path])
    (tmp_path / "a").rename(tmp_path / "c")
    assert fingerprint([tmp_path]) != first


INTERRUPTED = """
import signal, sys, time
from pathlib import Path
from slurm.fanout import Task
from slurm.store import Store

def work(folder, seconds):
    (folder / "pid").write_text(str(__import__("os").getpid()))
    time.sleep(seconds)

if __name__ == "__main__":
    # A shell starts what it puts into the background deaf to Ctrl-C, and with it the tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tasks = [(Task(str(seconds), {"seconds": seconds}), []) for seconds in (0, 600, 601)]
    try:
        Store(Path(sys.argv[1]), "").run(work, tasks, 2, "sleep")
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_keeps_finished_tasks_and_leaves_no_worker(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    store = tmp_path / "store"
    process = subprocess.Popen(
        [sys.executable, str(script), str(store)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until(lambda: len([*store.glob("[!.]*/pid"), *store.glob(".*/pid")]) == 3)
    workers = {int(path.read_text()) for path in store.glob("*/pid") if path.read_text()}
    # Ctrl-C reaches the whole group, a kill only the parent.
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.kill()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in errors
    until(lambda: not any(alive(worker) for worker in workers))
    assert len(list(store.glob("[!.]*"))) == 1, "the finished task is kept"


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)
