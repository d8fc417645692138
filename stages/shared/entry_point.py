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
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lorarar.errors import UserError
from lorarar.files import sweep
from slurm.commands import ClusterError
from slurm.monitor import cancel
from slurm.task import WORK, TaskError
from stages.shared import integrity
from stages.shared.context import Context, NotMade

PLANNED = ("images", "bank", "fit", "generate", "judge", "score", "quality", "ranking")
"""Stages that know a plan; all others are one piece of work in this process."""

KINDS = ("outs", "metrics", "plots")

WRITING = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
"""Audited operations that change the folder of their first argument, besides `open`."""


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
        if name not in ("base", "preflight") and "DVC_STAGE" not in os.environ:
            integrity.verify_outputs(name, missing=context.plan)
        if context.plan:
            _plan(stage, name, context)
            return
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


def _plan(stage: Callable[..., None], name: str, context: Context) -> None:
    """Let a stage show its tasks. It ends where it would write, whatever it is about to do."""
    write_nothing(Path(), WORK)
    outputs = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"].get(name, {})
    paths = [next(iter(out)) if isinstance(out, dict) else out for kind in KINDS for out in outputs.get(kind, [])]
    if name in PLANNED:
        try:
            stage(context)
        except NotMade as missing:
            print(f"{name}: the tasks are not known before their inputs are made: {missing}")
        except Written as path:
            print(f"{name}: no tasks; it would write {path}")
        return
    written = ", ".join(paths).replace("${base}", context.base)
    print(f"{name}: no tasks: it is one piece of work in this process, which writes {written}")


def write_nothing(*folders: Path) -> None:
    """Raise `Written` whenever this process is about to change something in the folders, from now on."""
    sys.dont_write_bytecode = True
    roots = [folder.absolute() for folder in folders]

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in WRITING
        if event == "open":
            _, mode, flags = arguments
            writes = any(letter in (mode or "") for letter in "wax+") or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
        if writes and isinstance(arguments[0], str | bytes | os.PathLike):
            path = Path(os.fsdecode(arguments[0])).absolute()
            if any(path.is_relative_to(root) for root in roots):
                raise Written(path)

    sys.addaudithook(check)


class Written(Exception):
    """A dry run was about to change a file, which is named."""


def _disk_is_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _end(status: int, message: str) -> NoReturn:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    sys.exit(status)
