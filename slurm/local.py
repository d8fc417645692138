"""Runs tasks on this machine: in this process, or in single-thread worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from slurm.task import Task, TaskError, one_line, perform

# Numeric libraries read these only when they are first imported, so workers are started with them.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def inline(tasks: Sequence[Task], description: str) -> None:
    """Do one task after the other in this process, where a debugger sees them.

    Raises
    ------
    TaskError : a task failed; those after it are not begun.
    """
    for task in progress_bar(len(tasks), description, iterable=tasks):
        try:
            perform(task)
        except Exception as error:
            raise TaskError(f"{description}: {task.name}: {one_line(error)}") from error


def local(tasks: Sequence[Task], workers: int, description: str) -> None:
    """Do tasks in that many worker processes. Errors are those of `call_all`."""
    call_all({task.name: {"task": task} for task in tasks}, perform, workers, description)


def call_all(
    calls: Mapping[str, dict[str, Any]], function: Callable[..., Any], workers: int, description: str
) -> list[Any]:
    """Call `function(**arguments)` for every name -> arguments and return the results in their order.

    Workers stay for the next call with the same number of them, so that it finds libraries and models loaded. After an
    error they are stopped.

    Parameters
    ----------
    calls : independent of each other; arguments and results must be picklable.
    function : a function of a module's top level.
    workers : largest number of processes, each with a single thread (two of them beat one of two threads).
    description : shown at the progress bar and in errors.

    Raises
    ------
    TaskError : a task failed. Tasks that had begun are finished first, the others are not begun.
    KeyboardInterrupt : on Ctrl-C; workers are stopped at once.
    """
    if not calls:
        return []
    pool = _pool(workers, Path.cwd())
    try:
        with _environment_of_workers():
            futures = {pool.submit(function, **arguments): name for name, arguments in calls.items()}
        _watch(futures, description)
        return [future.result() for future in futures]
    except BaseException as error:
        _pool.cache_clear()
        if isinstance(error, KeyboardInterrupt):
            for child in multiprocessing.active_children():
                child.terminate()
        # Waits for the pool's own thread too: Python ends with a traceback where that is still closing down.
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            message = f"{description}: a worker process died (out of memory?); lower `workers` and run again"
            raise TaskError(message) from error
        raise


@lru_cache(maxsize=1)
def _pool(workers: int, folder: Path) -> ProcessPoolExecutor:
    """The pool of this process. It starts workers as calls need them, in `folder`; Python ends them at its exit."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_follow_parent)


def progress_bar(total: int, description: str, unit: str = "task", **options: Any) -> tqdm:
    """tqdm's progress bar, which moves every 0.1 s on a terminal and every 15 s in a log file."""
    interval = 0.1 if sys.stderr.isatty() else 15
    return tqdm(total=total, desc=description, unit=unit, mininterval=interval, **options)


def _watch(names: dict[Future[Any], str], description: str) -> None:
    """Show progress until all is done. The first failure is raised with the name of its task."""
    with progress_bar(len(names), description) as progress:
        for future in as_completed(names):
            try:
                future.result()
            except BrokenProcessPool:
                raise
            except Exception as error:
                raise TaskError(f"{description}: {names[future]}: {one_line(error)}") from error
            progress.update()


@contextmanager
def _environment_of_workers() -> Iterator[None]:
    """Give workers that start inside one thread each. They ignore Ctrl-C, which the parent handles."""
    before = {name: os.environ[name] for name in ONE_THREAD if name in os.environ}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name in ONE_THREAD:
            del os.environ[name]
        os.environ.update(before)
        if main:
            signal.signal(signal.SIGINT, handler)


def _follow_parent() -> None:
    """End this worker when its parent is gone, even after a kill; otherwise it would wait for work for ever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
