"""Runs tasks on this machine: in this process, or in single-thread worker processes."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from typing import Any

from tqdm import tqdm

from slurm.task import Task, TaskError, one_line, perform

# Numeric libraries read these once, when they are first imported: workers must be born with them.
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
    for task in progress_bar(tasks, description):
        try:
            perform(task)
        except Exception as error:
            raise TaskError(f"{description}: {task.name}: {one_line(error)}") from error


def local(tasks: Sequence[Task], workers: int, description: str) -> None:
    """Do tasks in that many processes of this machine. Raises as `call_all` does."""
    call_all({task.name: {"task": task} for task in tasks}, perform, workers, description)


def call_all(
    calls: Mapping[str, dict[str, Any]], function: Callable[..., Any], workers: int, description: str
) -> list[Any]:
    """Call `function(**arguments)` for every name -> arguments and return the results in their order.

    Parameters
    ----------
    calls : independent of each other; arguments and results must be picklable.
    function : a function of a module's top level.
    workers : number of processes, each with a single thread (two of them beat one of two threads).
    description : shown beside the progress bar and in errors.

    Raises
    ------
    TaskError : a task failed. Tasks that had begun are finished first, the others are not begun.
    KeyboardInterrupt : on Ctrl-C; workers are stopped at once.
    """
    if not calls:
        return []
    executor = _pool(workers)
    try:
        with _environment_of_workers():
            futures = {executor.submit(function, **arguments): name for name, arguments in calls.items()}
        _watch(futures, description)
        return [future.result() for future in futures]
    except BaseException as error:
        _pool.cache_clear()  # no later call may meet what is left of this one
        if isinstance(error, KeyboardInterrupt):
            for child in multiprocessing.active_children():
                child.terminate()
        executor.shutdown(cancel_futures=True)
        raise


@cache
def _pool(workers: int) -> ProcessPoolExecutor:
    """Worker processes, kept for later calls of this process: each loads its libraries and the base model once."""
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_follow_parent)
    # Waits for the executor's own thread too: Python ends with a traceback where that is still closing down.
    atexit.register(executor.shutdown, cancel_futures=True)
    return executor


def progress_bar(items: Collection[Any], description: str, done: int = 0, **options: Any) -> tqdm:
    """A progress bar; in a log file it writes a line every 15 seconds."""
    interval = 0.1 if sys.stderr.isatty() else 15
    options = {"unit": "task"} | options
    return tqdm(items, desc=description, mininterval=interval, total=len(items), initial=done, **options)


def _watch(names: dict[Future[Any], str], description: str) -> None:
    """Show progress until all is done; at the first failure tell which task it was."""
    with progress_bar(names, description) as progress:
        for future in as_completed(names):
            try:
                future.result()
            except BrokenProcessPool as error:
                message = f"{description}: a worker process died (out of memory?); lower `workers` and run again"
                raise TaskError(message) from error
            except Exception as error:
                raise TaskError(f"{description}: {names[future]}: {one_line(error)}") from error
            progress.update()


@contextmanager
def _environment_of_workers() -> Iterator[None]:
    """Workers started inside have one thread each and are deaf to Ctrl-C, which is the parent's to handle."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if main:
            signal.signal(signal.SIGINT, handler)


def _follow_parent() -> None:
    """End this worker when its parent is gone, however that happened: it would wait for work for ever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
