"""Curves of trainings and metrics for TensorBoard, DVCLive, MLflow or Weights & Biases, where params.yaml asks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

Tracker = Literal["tensorboard", "dvclive", "mlflow", "wandb"]
"""Packages that take curves. All but DVCLive read settings of their own from the environment."""

VARIABLE = "LORARAR_TRACKING"
"""Tells tasks, in whichever process they run, who takes their curves: an argument would be part of their keys."""

Log = Callable[[int, Mapping[str, float]], None]


def missing(name: Tracker) -> str:
    """Why a tracker cannot be used, and what to do; empty if it is installed."""
    advice = "`pip install 'lorarar[tracking]'`" if name == "tensorboard" else f"`pip install {name}`"
    return "" if find_spec(name) else f"{name} is not installed; {advice}, or remove it"


def ask(trackers: Sequence[Tracker]) -> None:
    """Let the tasks of this process, and of those that it starts, send their curves to these."""
    os.environ[VARIABLE] = ",".join(trackers)


@contextmanager
def tracked(folder: Path, run: str) -> Iterator[Log]:
    """A function that takes the values of a step and sends them to all trackers; without any, it does nothing.

    Parameters
    ----------
    folder
        Where TensorBoard and DVCLive write; W&B keeps its files there too. MLflow has a place of its own.
    run
        The curve's name, such as "ziplora/dog8+glowing".
    """
    names = [name for name in os.environ.get(VARIABLE, "").split(",") if name]
    if not names:
        yield lambda step, values: None
        return
    # Accelerate has one interface for all of them, and only the main process of several writes.
    from accelerate import PartialState, tracking

    PartialState()
    kinds: dict[str, Callable[[], Any]] = {
        "tensorboard": lambda: tracking.TensorBoardTracker(run, folder),
        "dvclive": lambda: tracking.DVCLiveTracker(dir=str(folder / run), save_dvc_exp=False, dvcyaml=None),
        "mlflow": lambda: tracking.MLflowTracker("lorarar", run_name=run),
        "wandb": lambda: tracking.WandBTracker("lorarar", name=run, dir=str(folder)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    made = [kinds[name]() for name in names]
    for tracker in made:
        tracker.start()

    def log(step: int, values: Mapping[str, float]) -> None:
        for tracker in made:
            tracker.log(dict(values), step=step)

    try:
        yield log
    finally:
        for tracker in made:
            tracker.finish()


def of_task(folder: Path, name: str) -> tuple[Path, str]:
    """Where the curve of the task that fills `folder` goes, and its run: its store, its name, its key's beginning.

    Other settings have another key, so their curve is drawn next to the first.
    """
    store = folder.parent
    return store.parent / "tracking", "/".join([store.name, *filter(None, [name]), folder.name.strip(".")[:8]])
