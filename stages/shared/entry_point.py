"""How every stage starts and ends: mistakes are one clear line each, and the exit status says how it went."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lorarar.errors import UserError
from lorarar.files import sweep
from slurm.commands import ClusterError
from slurm.job import name_of
from slurm.monitor import cancel
from slurm.task import TaskError
from stages.shared import integrity
from stages.shared.context import Context


def run(stage: Callable[[Context], None], *arguments: str) -> None:
    """Call a stage with its context and exit: 0, 1 after an error, 130 after Ctrl-C.

    Parameters
    ----------
    arguments : names of the positional arguments the stage takes on its command line.
    """
    name = name_of(stage).partition(":")[0].rpartition(".")[2]
    parser = argparse.ArgumentParser(prog=f"python -m stages.{name}")
    parser.description = (sys.modules[stage.__module__].__doc__ or "").splitlines()[0]
    for argument in arguments:
        parser.add_argument(argument)
    parser.add_argument("--plan", action="store_true", help="show what would be done, and where, and do nothing")
    parser.add_argument("--cancel", action="store_true", help="on Ctrl-C also cancel the jobs that are in the queue")
    given = parser.parse_args()
    # Libraries' remarks on how they load would bury the chain's own lines; workers inherit this.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every file is here: nothing asks the network
    # A polite kill ends as Ctrl-C does: workers are stopped, finished tasks are kept.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        context = Context.load([getattr(given, argument) for argument in arguments], given.plan)
        if name != "base" and context.drawn:  # else nothing is shipped; and that stage makes what is
            integrity.shipped(context.data)
        if name not in ("base", "check") and "DVC_STAGE" not in os.environ and not context.plan:
            integrity.made("@".join(filter(None, [name, "-".join(context.arguments)])))
        for folder in (context.artifacts, context.results, Path(".work") / context.base):
            sweep(folder)
        stage(context)
    except KeyboardInterrupt:
        if given.cancel:
            cancel(Path(".work"))
        _end(130, "interrupted; finished work is kept, the same command goes on from there")
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
