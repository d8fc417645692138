"""Tasks on one machine, and the store of finished tasks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from slurm.fanout import Executor
from slurm.local import call_all
from slurm.resources import Resources
from slurm.store import Store
from slurm.task import RECORD, Changed, Task, TaskError, Work, paths_sha256, perform, read_record, state

ROOT = Path(__file__).parents[2]
SMALL = Resources(minutes=1, memory_gb=1, cpus=1, gpus=0, parallel=2, retries=1, tasks_per_job=1)


def square(number: int) -> tuple[int, str, int]:
    return number**2, os.environ["OMP_NUM_THREADS"], os.getpid()


def refuse(number: int) -> int:
    if number == 1:
        raise ValueError("number 1 is refused\nand a second line")
    return number


@dataclass(frozen=True)
class Write:
    text: str

    def run(self, folder: Path) -> None:
        (folder / "text").write_text(self.text)
        if self.text == "bad":
            raise ValueError("bad text")


class Other(Write):
    """The same fields, but another class."""


@dataclass(frozen=True)
class Copy:
    source: Path
    to: Write

    def run(self, folder: Path) -> None:
        shutil.copyfile(self.source, folder / self.to.text)


def die(number: int) -> int:
    os._exit(7)


def test_results_come_in_the_order_of_the_tasks_from_single_thread_workers() -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    results = call_all({str(n): {"number": n} for n in range(5)}, square, 2, "squares")
    assert [result[0] for result in results] == [0, 1, 4, 9, 16]
    assert {result[1] for result in results} == {"1"}
    assert os.getpid() not in {result[2] for result in results}
    assert os.environ.get("OMP_NUM_THREADS") == before


def workers(number: int, calls: int) -> set[int]:
    return {pid for *_, pid in call_all({str(n): {"number": n} for n in range(calls)}, square, number, "squares")}


def test_workers_stay_for_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = workers(3, 1)
    second = workers(3, 4)
    assert first in second | workers(3, 4) and len(second) <= 3
    alone = workers(1, 4)
    assert len(alone) == 1 and first not in alone, "another number of workers is another pool"
    assert workers(1, 1) == alone
    monkeypatch.chdir(tmp_path)
    assert workers(1, 1) != alone, "relative paths would be those of the former folder"


@pytest.mark.parametrize("end", [refuse, die])
def test_after_an_error_no_worker_stays(end: Callable[..., int]) -> None:
    (before,) = workers(1, 1)
    with pytest.raises(TaskError):
        call_all({"1": {"number": 1}}, end, 1, "errors")
    assert not alive(before) and workers(1, 1) != {before}


def test_no_task_starts_no_worker() -> None:
    assert call_all({}, square, 2, "nothing") == []


def test_the_first_error_is_one_line_that_names_the_task() -> None:
    with pytest.raises(TaskError) as caught:
        call_all({f"n{n}": {"number": n} for n in range(3)}, refuse, 1, "refusals")
    assert str(caught.value) == "refusals: n1: number 1 is refused"
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_worker_that_dies_is_an_error_not_a_hang() -> None:
    with pytest.raises(TaskError, match="a worker process died"):
        call_all({"only": {"number": 1}}, die, 1, "deaths")


def run(root: Path, *texts: str, code: str = "1", executor: Executor = "inline", reads: list[Path] | None = None):
    tasks = [Task(text, Write(text), reads or []) for text in texts]
    return Store(root, code).run(tasks, SMALL, "texts", executor)


def test_a_task_is_known_by_its_class_and_its_fields() -> None:
    def key(work: Work) -> str:
        return Store(Path(), "1").plan([Task("a", work)])[0].key

    copy = Copy(Path("a"), Write("b"))
    works: list[Work] = [Write("a"), Write("b"), Other("a"), copy, replace(copy, source=Path("b"))]
    assert len({key(work) for work in [*works, replace(copy, to=Write("a"))]}) == 6
    assert key(copy) == key(Copy(Path("a"), Write("b")))
    with pytest.raises(TypeError):
        key(Copy({"no": "JSON"}, {"a", "set"}))  # type: ignore[arg-type]


def test_work_that_other_processes_cannot_import_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Write, "__module__", "__main__")
    with pytest.raises(TypeError, match=r"^dog: Write is a class of the running script .*; import it from its module$"):
        Task("dog", Write("a"))


def test_the_store_does_only_what_is_missing(tmp_path: Path) -> None:
    source = tmp_path / "input"
    source.write_text("one")
    root = tmp_path / "store"
    first = run(root, "a", "b", reads=[source])
    assert (first["a"] / "text").read_text() == "a"
    stamp = (first["a"] / "text").stat().st_mtime_ns
    second = run(root, "a", "b", "c", reads=[source])
    assert second["a"] == first["a"] and (second["a"] / "text").stat().st_mtime_ns == stamp
    assert len(list(root.glob("[!.]*"))) == 3
    source.write_text("two")
    assert run(root, "a", reads=[source])["a"] != first["a"], "another input is another task"
    assert run(root, "a", code="2")["a"] != run(root, "a")["a"], "other code is another task"


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_a_failed_task_leaves_nothing_and_finished_ones_stay(tmp_path: Path, executor: Executor) -> None:
    with pytest.raises(TaskError, match="texts: bad: bad text") as caught:
        run(tmp_path, "good", "bad", executor=executor)
    assert isinstance(caught.value.__cause__, ValueError)
    (kept,) = tmp_path.glob("[!.]*")
    assert (kept / "text").read_text() == "good"
    assert not list(tmp_path.glob(".*.*"))


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_executors_on_this_machine_write_the_same(tmp_path: Path, executor: Executor) -> None:
    folder = run(tmp_path, "a", executor=executor)["a"]
    assert [path.name for path in folder.glob("[!.]*")] == ["text"] and (folder / "text").read_text() == "a"
    record = read_record(folder)
    assert record["name"] == "a" and record["seconds"] >= 0 and record["memory_mb"] > 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "lost", "more", "no record"])
def test_a_finished_task_is_known_by_its_complete_and_checksummed_output(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run(tmp_path, "abc")["abc"] / "text"
    match damage:
        case "cut":
            file.write_text("ab")
        case "flipped":
            file.write_text("abd")
        case "lost":
            file.unlink()
        case "more":
            file.with_name("other").touch()
        case "no record":
            file.with_name(RECORD).unlink()
    assert (run(tmp_path, "abc")["abc"] / "text").read_text() == "abc"
    assert "abc: its files are damaged or have no record; done again" in capsys.readouterr().out
    assert not file.with_name("other").exists()


def test_an_input_edited_after_the_plan_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "input"
    source.write_text("planned")
    (task,) = Store(tmp_path / "store", "").plan([Task("a", Write("a"), [source])])
    source.write_text("edited")
    with pytest.raises(Changed, match="run the stage again"):
        perform(task)
    assert not task.folder.exists()


def test_a_second_attempt_of_a_finished_task_does_nothing(tmp_path: Path) -> None:
    folder = run(tmp_path, "a")["a"]
    stamp = (folder / "text").stat().st_mtime_ns
    perform(Task("a", Write("other"), folder=folder, inputs=paths_sha256([])))
    assert (folder / "text").stat().st_mtime_ns == stamp


@dataclass(frozen=True)
class KeepState:
    def run(self, folder: Path) -> None:
        before = state(folder).read_text() if state(folder).exists() else ""
        state(folder).write_text(before + "x")
        if len(before) < 2:
            raise ValueError("interrupted")
        (folder / "text").write_text(before)


def test_the_state_of_a_task_outlives_its_attempts_and_goes_when_it_is_done(tmp_path: Path) -> None:
    store = Store(tmp_path, "")
    for _ in range(2):
        with pytest.raises(TaskError):
            store.run([Task("a", KeepState())], SMALL, "states", "inline")
    folder = store.run([Task("a", KeepState())], SMALL, "states", "inline")["a"]
    assert (folder / "text").read_text() == "xx"
    assert not state(folder).exists()


def test_the_hash_of_paths_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    first = paths_sha256([tmp_path])
    assert first == paths_sha256([tmp_path])
    (tmp_path / "a").rename(tmp_path / "c")
    assert paths_sha256([tmp_path]) != first


INTERRUPTED = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from slurm.store import Store
from slurm.resources import Resources
from slurm.task import Task

@dataclass(frozen=True)
class Sleep:
    seconds: int

    def run(self, folder):
        (folder / "pid").write_text(str(__import__("os").getpid()))
        time.sleep(self.seconds)

if __name__ == "__main__":
    from script import Sleep  # not that of __main__
    tasks = [Task(str(seconds), Sleep(seconds)) for seconds in (0, 600, 601)]
    small = Resources(minutes=1, memory_gb=1, cpus=1, gpus=0, parallel=2, retries=1, tasks_per_job=1)
    try:
        Store(Path(sys.argv[1]), "").run(tasks, small, "sleep", "local", 2)
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
