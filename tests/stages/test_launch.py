"""Training on several processes: the losses of one, results of the first, and a state that any number continues."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from members import member

from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter
from lorarar.merging.hypernet import HyperNetwork
from lorarar.training.checkpoint import Interrupted
from lorarar.training.processes import Processes
from slurm.task import state
from stages.shared import launch
from stages.shared.base_model import Model, Setting
from stages.shared.context import GPUS
from stages.shared.trained import HISTORY, TrainHypernet

ROOT = Path(__file__).parents[2]
KNOBS = {
    "steps": 5, "learning_rate": 0.01, "weight": 0.01, "batch_size": 4, "fidelity": "norm", "orthogonality": "cosine",
    "clip": 1.0, "guided": ["to_q"], "constants": [1.0, 1.0], "initial": 1.0, "scale": 1.0, "context": "none",
}  # fmt: skip
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def work(
    tiny_folder: Path, adapters: tuple[Adapter, Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrainHypernet:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    setting = Setting(Model(str(tiny_folder), "float32"), 16, 4, False, False)
    content, style = (
        tuple(member(tmp_path / "bank", f"{kind}{i}", adapter, 40 * i) for i in range(2))
        for kind, adapter in zip(("subject", "style"), adapters, strict=True)
    )
    return TrainHypernet(setting, content, style, KNOBS, seed=3)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """Makes the folder that a task with this key fills."""

    def make(key: str) -> Path:
        made = tmp_path / "hypernet" / f".{key}.host-1"
        made.mkdir(parents=True)
        return made

    return make


def losses(folder: Path) -> list[list[float]]:
    with (folder / HISTORY).open() as file:
        return [list(map(float, row)) for row in list(csv.reader(file))[1:]]


def test_two_processes_take_the_steps_of_one(work: TrainHypernet, folder: Callable[[str], Path]) -> None:
    one, two = folder("one"), folder("two")
    work.run(one)
    launch.launch(work, two, 2)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert {path.name for path in two.iterdir()} == {"hypernet.safetensors", HISTORY}
    torch.testing.assert_close(torch.tensor(losses(two)), torch.tensor(losses(one)), rtol=2e-5, atol=1e-6)  # 6 digits
    networks = [HyperNetwork.load(path / "hypernet.safetensors") for path in (one, two)]
    start = HyperNetwork.for_adapter(
        Adapter.load(work.contents[0].adapter or ""), seed=3, guided=["to_q"], constants=[1.0, 1.0], initial=1.0
    )
    for ours, theirs, before in zip(*(network.parameters() for network in (*networks, start)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # AdamW divides by what may be small
        assert (ours - before).abs().max() > 1e-2


def test_what_one_process_began_two_continue(
    work: TrainHypernet, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, begun, alone = folder("whole"), folder("begun"), folder("alone")
    work.run(whole)
    for part, number in ((begun, 3), (alone, 4)):
        answers = iter([False] * (number - 1) + [True])
        with pytest.raises(Interrupted):
            work.train(part, lambda answers=answers: next(answers))
        assert state(part).exists() and not list(part.iterdir())
    monkeypatch.setattr(launch, "asked_to_stop", lambda: True)
    with pytest.raises(Interrupted):
        launch.launch(work, begun, 2)  # for one step
    assert not list(begun.iterdir())
    found, expected = (torch.load(state(part), weights_only=True) for part in (begun, alone))
    assert found["step"] == expected["step"] == 4
    torch.testing.assert_close(found["parameters"][-1], expected["parameters"][-1], rtol=1e-6, atol=1e-6)  # the losses
    torch.testing.assert_close(found["parameters"], expected["parameters"], rtol=0, atol=1e-4)
    monkeypatch.setattr(launch, "asked_to_stop", lambda: False)
    launch.launch(work, begun, 2)
    assert losses(begun)[:3] == losses(whole)[:3], "the first three are those of one process"
    torch.testing.assert_close(torch.tensor(losses(begun)), torch.tensor(losses(whole)), rtol=2e-5, atol=1e-6)


def test_a_mistake_is_the_users_line(work: TrainHypernet, folder: Callable[[str], Path]) -> None:
    odd = replace(work, knobs=KNOBS | {"batch_size": 3})
    with pytest.raises(UserError, match="batch_size 3 has no equal shares for 2 processes; make it a multiple"):
        launch.launch(odd, folder("odd"), 2)


def test_shares_are_all_of_the_batch() -> None:
    rows = [row for index in range(3) for row in range(12)[Processes(3, index).share(12)]]
    assert rows == list(range(12))


def test_more_gpus_than_there_are_is_one_line(
    work: TrainHypernet, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv(GPUS, "4")
    with pytest.raises(UserError, match="resources ask for 4 GPUs, but 1 are here; lower `hypernet: gpus`"):
        work.run(folder("many"))


MEMBERS = """
import resource, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import torch
torch.set_num_threads(1)
from members import member
from stages.shared.base_model import Model, Setting
from stages.shared.trained import TrainHypernet
folder, number = Path({folder!r}), int(sys.argv[1])
bank = [member(folder / sys.argv[1], f"m{{i}}", folder / "large.safetensors", i % 256) for i in range(number)]
task = folder / f"hypernet{{number}}" / ".key.host-1"
task.mkdir(parents=True)
half, setting = number // 2, Setting(Model({base!r}, "float32"), 16, 4, False, False)
TrainHypernet(setting, bank[:half], bank[half:], {knobs!r}, 3).run(task)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_bank(
    work: TrainHypernet, adapters: tuple[Adapter, Adapter], tmp_path: Path
) -> None:
    large = Adapter({path: type(f)(f.down.repeat(16, 1), f.up.repeat(1, 16)) for path, f in adapters[0].layers.items()})
    large.save(tmp_path / "large.safetensors")
    size = (tmp_path / "large.safetensors").stat().st_size / 2**20
    steps = 150
    assert 2000 * size > 400 and 2 * steps * size > 60, "more than may be added, were it kept"
    knobs = KNOBS | {"steps": steps, "batch_size": 1}
    code = MEMBERS.format(
        root=str(ROOT), tests=str(ROOT / "tests"), folder=str(tmp_path), base=work.setting.model.folder, knobs=knobs
    )
    megabytes = []
    for number in (20, 2000):
        words = [sys.executable, "-c", code, str(number)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        megabytes.append(int(done.stdout.split()[-1]))
    assert megabytes[1] - megabytes[0] < 60, megabytes
