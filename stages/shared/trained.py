"""Methods that need training before they can merge, one row each.

Stage `fit` trains every row whose method is evaluated; merging, records, costs and the report iterate over the rows.
To add one: its task and row here, the type of its section in stages/shared/schema.py, its method in
lorarar/merging/registry.py, its sections in params.yaml, and its parameters and folder in stage `fit` of dvc.yaml.
"""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lorarar.lora.adapter import Adapter
from lorarar.merging import columns
from lorarar.merging.hypernet import HyperNetwork
from lorarar.training.checkpoint import Checkpoint
from lorarar.training.processes import ALONE, Processes
from slurm.job import asked_to_stop
from slurm.local import progress_bar
from slurm.task import state
from stages.shared import launch
from stages.shared.bank_members import Member, Streamed
from stages.shared.base_model import Setting
from stages.shared.flops import Counts
from stages.shared.schema import Merger, Training
from stages.shared.tracking import of_task, tracked

if TYPE_CHECKING:
    from lorarar.training.objective import MergingLoss
    from lorarar.training.references import Entry

HISTORY = "history.csv"
"""Losses of each step, written by a row that is trained once for all pairs."""


@dataclass(frozen=True)
class Fit(ABC):
    """A training task; `run` trains, or continues from the state of an interrupted attempt.

    Attributes
    ----------
    contents, styles : the members of a pair, or of the training split.
    knobs : the row's section of params.yaml.
    """

    setting: Setting
    contents: Sequence[Member]
    styles: Sequence[Member]
    knobs: dict[str, Any]
    seed: int

    @abstractmethod
    def run(self, folder: Path) -> None:
        """Write the row's file into a folder."""

    def checkpoint(self, folder: Path) -> Checkpoint:
        return Checkpoint(state(folder), stop=asked_to_stop)

    @contextmanager
    def curve(self, folder: Path) -> Iterator[Callable[[int, MergingLoss | float], None]]:
        """Takes the loss of each step, for the trackers of params.yaml."""
        one = len(self.contents) == len(self.styles) == 1
        name = "+".join(member.name for member in (*self.contents, *self.styles)) if one else ""
        with tracked(*of_task(folder, name)) as log:
            yield lambda step, loss: log(step, _terms(loss))

    def entries(self, members: Sequence[Member]) -> list[Entry]:
        return [member.load(self.setting.model, self.setting.resolution) for member in members]


class TrainHypernet(Fit):
    """Trains the hypernetwork of LoRA.rar on all pairs of the members (Algorithm 1)."""

    def run(self, folder: Path) -> None:
        number = launch.asked()
        if number > 1:
            launch.launch(self, folder, number)
        else:
            self.train(folder)

    def train(self, folder: Path, stop: Callable[[], bool] = asked_to_stop, processes: Processes = ALONE) -> None:
        """Train, as the only process or as one of several; the first one writes."""
        with TemporaryDirectory(dir=folder) as spool:
            self._train(folder, Path(spool), Checkpoint(state(folder), stop=stop), processes)

    def _train(self, folder: Path, spool: Path, checkpoint: Checkpoint, processes: Processes) -> None:
        from lorarar.training.hypernet import train

        knobs, setting = dict(self.knobs), (self.setting.model, self.setting.resolution, spool)
        banks = [Streamed(members, *setting) for members in (self.contents, self.styles)]
        network = {name: knobs.pop(name) for name in ("guided", "constants", "initial", "scale", "context")}
        made = HyperNetwork.for_adapter(banks[0][0].adapter, seed=self.seed, **network)
        bar = progress_bar(knobs["steps"], "hypernet", "step", leave=False, disable=not processes.main)
        with bar as shown, self.curve(folder) as log:

            def show(step: int, loss: MergingLoss) -> None:
                shown.update(step - shown.n)
                log(step, loss)

            history = train(
                made,
                self.setting.model.load(),
                *banks,
                **knobs,
                gradient_checkpointing=self.setting.gradient_checkpointing,
                seed=self.seed,
                processes=processes,
                checkpoint=checkpoint,
                progress=show,
            )
        if processes.main:
            made.save(folder / "hypernet.safetensors")
            write_history(folder / HISTORY, history)


class FitZipLoRA(Fit):
    """Fits the coefficients of ZipLoRA to one pair."""

    def run(self, folder: Path) -> None:
        from lorarar.training.ziplora import optimise

        (content,), (style,) = (self.entries(members) for members in (self.contents, self.styles))
        with self.curve(folder) as log:
            coefficients = optimise(
                self.setting.model.load(),
                content.adapter,
                style.adapter,
                content.references,
                style.references,
                **self.knobs,
                gradient_checkpointing=self.setting.gradient_checkpointing,
                seed=self.seed,
                checkpoint=self.checkpoint(folder),
                progress=log,
            )
        columns.save(folder / "coefficients.safetensors", coefficients, {"method": "ziplora"})


class TrainJoint(Fit):
    """Trains one LoRA on the pictures of subject and style."""

    def run(self, folder: Path) -> None:
        from lorarar.training.joint import train

        concepts: list[Any] = []
        for member in (*self.contents, *self.styles):
            concepts += [member.pixels(self.setting.resolution), [member.prompt] * len(member.images)]
        with self.curve(folder) as log:
            adapter = train(
                self.setting.model.load(),
                *concepts,
                **self.knobs,
                rank=self.setting.rank,
                gradient_checkpointing=self.setting.gradient_checkpointing,
                eight_bit_adam=self.setting.eight_bit_adam,
                seed=self.seed,
                checkpoint=self.checkpoint(folder),
                progress=log,
            )
        adapter.save(folder / "adapter.safetensors")


def _terms(loss: MergingLoss | float) -> dict[str, float]:
    return {"loss": loss} if isinstance(loss, float) else {name: float(term) for name, term in loss._asdict().items()}


def write_history(path: Path, history: Sequence[dict[str, float]]) -> None:
    """Write the losses of a training as a table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "loss", "content", "style", "orthogonality"])
        for row in history:
            terms = [row[name] for name in ("total", "content", "style", "orthogonality")]
            writer.writerow([row["step"], *(f"{term:.6g}" for term in terms)])


@dataclass(frozen=True)
class Trained:
    """A row: what a method needs trained.

    Attributes
    ----------
    name : its section in `recipes`, `seeds` and `resources` of params.yaml, and its folder in artifacts/<base>.
    method : the row of `lorarar.merging.registry.METHODS` that uses the result, as its keyword `option`.
    work : the task.
    file, load : what the task leaves, and how it is read.
    tflop : (counts, knobs, gradient checkpointing) -> TFLOP of one task.
    per_pair : trained for each evaluated pair; otherwise once, on the training split.
    reads_adapters : whether the task reads the bank's adapters, or only pictures.
    is_adapter : whether the result is a LoRA, which takes a LoRA's room on the disk.
    coefficients : (result, content, style) -> the column coefficients of a pair; None if there are none.
    """

    name: str
    method: str
    option: str
    work: type[Fit]
    file: str
    load: Callable[[Path], Any]
    tflop: Callable[[Counts, Any, bool], float]
    per_pair: bool = True
    reads_adapters: bool = True
    is_adapter: bool = False
    coefficients: Callable[[Any, Adapter, Adapter], columns.Coefficients] | None = None


def _fitting(counts: Counts, knobs: Merger, checkpointing: bool) -> float:
    return counts.fitting(knobs.steps, knobs.batch_size, checkpointing, knobs.fidelity == "relative")


def _training(counts: Counts, knobs: Training, checkpointing: bool) -> float:
    return counts.training(knobs.steps, knobs.batch_size, checkpointing)


TRAINED: dict[str, Trained] = {
    row.name: row
    for row in [
        Trained(
            "hypernet", "lorarar", "hypernet", TrainHypernet, "hypernet.safetensors", HyperNetwork.load,
            _fitting, per_pair=False, coefficients=lambda network, c, s: network.coefficients(c, s),
        ),
        Trained(
            "ziplora", "ziplora", "coefficients", FitZipLoRA, "coefficients.safetensors", columns.load,
            _fitting, coefficients=lambda fitted, c, s: fitted,
        ),
        Trained(
            "joint", "joint", "adapter", TrainJoint, "adapter.safetensors", Adapter.load,
            _training, reads_adapters=False, is_adapter=True,
        ),
    ]
}  # fmt: skip
