"""Curves go to the trackers that params.yaml names, and no task knows of them."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking as trackers
from members import member

from lorarar.data.catalog import Catalog
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter
from stages import bank, fit
from stages.shared import tracking
from stages.shared.base_model import Model, Setting
from stages.shared.context import Context
from stages.shared.params import load
from stages.shared.trained import HISTORY, FitZipLoRA, TrainHypernet

ROOT = Path(__file__).parents[2]


class Recorder:
    """Stands for TensorBoard's tracker of accelerate."""

    runs: dict[str, list[tuple[int, dict[str, float]]]]

    def __init__(self, run: str, folder: Path) -> None:
        self.run, self.open = run, False

    def start(self) -> None:
        self.open = True

    def log(self, values: dict[str, float], step: int) -> None:
        assert self.open
        self.runs.setdefault(self.run, []).append((step, values))

    def finish(self) -> None:
        self.open = False


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that `ask` sets is as it was, afterwards."""
    monkeypatch.setenv(tracking.VARIABLE, "")


@pytest.fixture
def work(tiny_folder: Path, adapters: tuple[Adapter, Adapter], tmp_path: Path) -> tuple[Any, ...]:
    """The setting and the members of a training on the tiny base."""
    content, style = (member(tmp_path, *each) for each in zip(("dog", "ink"), adapters, (10, 200), strict=True))
    return Setting(Model(str(tiny_folder), "float32"), 16, 4, False, False), (content,), (style,)


KNOBS = {"steps": 3, "learning_rate": 0.01, "weight": 0.01, "batch_size": 1}
NETWORK = {"guided": ["to_q"], "constants": [1.0, 1.0], "initial": 1.0, "scale": 1.0, "context": "none"}


def test_every_step_is_tracked_as_the_history_has_it(
    asked: None, work: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "TensorBoardTracker", Recorder)
    monkeypatch.setattr(Recorder, "runs", {}, raising=False)
    silent, told = (tmp_path / name / ".0123456789.host-1" for name in ("hypernet", "ziplora"))
    for folder in (silent, told):
        folder.mkdir(parents=True)
    TrainHypernet(*work, KNOBS | NETWORK, 0).run(silent)
    assert Recorder.runs == {}, "nobody asked"
    before = {path.name: path.read_bytes() for path in silent.iterdir()}
    tracking.ask(["tensorboard"])
    TrainHypernet(*work, KNOBS | NETWORK, 0).run(silent)
    FitZipLoRA(*work, KNOBS, 0).run(told)
    assert {path.name: path.read_bytes() for path in silent.iterdir()} == before, "the same bits"
    assert Recorder.runs.keys() == {"hypernet/dog+ink/01234567", "ziplora/dog+ink/01234567"}
    with (silent / HISTORY).open() as file:
        rows = list(csv.DictReader(file))
    curve = Recorder.runs["hypernet/dog+ink/01234567"]
    assert [step for step, _ in curve] == [int(row["step"]) for row in rows] == [1, 2, 3]
    for (_, values), row in zip(curve, rows, strict=True):
        assert f"{values['total']:.6g}" == row["loss"] and f"{values['style']:.6g}" == row["style"]


def test_tensorboard_reads_the_curve(asked: None, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking.ask(["tensorboard"])
    with tracking.tracked(tmp_path, "bank/dog") as log:
        for step in (1, 2, 3):
            log(step, {"loss": step / 4})
    found = EventAccumulator(str(tmp_path / "bank/dog")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in found] == [(1, 0.25), (2, 0.5), (3, 0.75)]


def test_no_key_knows_of_it(asked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    context = Context.load()
    found: list[list[Any]] = []

    def fan_out(self: Context, *groups: Any) -> None:
        found.append([(group.store.code, group.store.root, list(group.tasks)) for group in groups])
        raise SystemExit

    monkeypatch.setattr(Context, "fan_out", fan_out)
    for names in ((), ("tensorboard", "mlflow")):
        changed = replace(context, params=context.params.model_copy(update={"tracking": names}))
        for stage in (bank, fit):
            with pytest.raises(SystemExit):
                stage.main(changed)
    assert found[:2] == found[2:] and len(found[0][0][2]) == 56


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    for given, expected in (
        ("[tensorboard]", r"tracking\.0: tensorboard is not installed; `pip install 'lorarar\[tracking\]'`, or remove"),
        ("[wandb]", r"tracking\.0: wandb is not installed; `pip install wandb`, or remove it"),
        ("[tensorbord]", r"tracking\.0: should be 'tensorboard', 'dvclive', 'mlflow' or 'wandb', not 'tensorbord'"),
        ("[wandb, wandb]", r"tracking\.1: wandb appears twice"),
    ):
        path.write_text(text.replace("tracking: []", f"tracking: {given}"), encoding="utf-8")
        with pytest.raises(UserError, match=expected):
            load(path, Catalog.load(ROOT))
