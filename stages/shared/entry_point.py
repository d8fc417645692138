"""The entry point of every stage: a mistake ends in one clear line, and the exit status tells success."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from lorarar.errors import UserError
from lorarar.files import sweep
from slurm.commands import ClusterError
from slurm.monitor import cancel
from slurm.task import WORK, TaskError
from stages.shared import integrity
from stages.shared.context import Context


def run(stage: Callable[..., None], *arguments: str) -> None:
    """Call a stage with its context and exit: 0, 1 after an error, 130 after Ctrl-C.

    Parameters
    ----------
    arguments
        Names of positional arguments on the command line, which the stage gets after the context.
    """
    # A script is the module `__main__`; its tasks travel to other processes under the module's own name.
    module = sys.modules[stage.__module__]
    full = module.__spec__.name if module.__spec__ else stage.__module__
    stage, name = getattr(importlib.import_module(full), stage.__name__), full.rpartition(".")[2]
    parser = argparse.ArgumentParser(prog=f"python -m {full}")
    parser.description = (module.__doc__ or "").splitlines()[0]
    parser.add_argument("--plan", action="store_true", help="show the tasks and where they would run, and do nothing")
    parser.add_argument("--cancel", action="store_true", help="on Ctrl-C also cancel the jobs that are in the queue")
    for argument in arguments:
        parser.add_argument(argument)
    given = parser.parse_args()
    # Libraries' remarks on how they load would bury the chain's own lines; workers inherit this.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every file is here: nothing asks the network
    # A polite kill ends as Ctrl-C does: workers are stopped, finished tasks are kept.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        context = Context.load(given.plan)
        if name != "base" and context.drawn:  # else nothing is shipped; and that stage makes the shipped files
            integrity.verify_shipped(context.data)
        if name not in ("base", "preflight") and "DVC_STAGE" not in os.environ and not context.plan:
            integrity.verify_outputs(name)
        for folder in (context.artifacts, context.results, context.work):
            sweep(folder)
        stage(context, *(getattr(given, argument) for argument in arguments))
    except KeyboardInterrupt:
        if given.cancel:
            cancel(WORK)
        _end(130, "interrupted; finished work is kept, and the same command continues")
    except (UserError, ClusterError) as error:
        _end(1, str(error))
    except TaskError as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, UserError) or _disk_is_full(cause):
            _end(1, str(error))
        traceback.print_exception(cause)  # a defect of ours: the line alone would not help to mend it
        _end(1, str(error))
    except OSError as error:
        if not _disk_is_full(error):
            raise
        _end(1, f"{error.filename or 'disk'}: no space left; free some, finished work is kept")


def _disk_is_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _end(status: int, message: str) -> NoReturn:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    sys.exit(status)
