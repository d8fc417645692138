"""One bit of a file is flipped: its reader names it, and it is made again or refused; no table has it."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from chain import call, content, succeed

from lorarar.errors import UserError
from lorarar.training.checkpoint import Checkpoint
from slurm.resources import Resources
from slurm.store import Store
from slurm.task import Task
from stages.shared import integrity

SEED = 20260102
RESOURCES = Resources(minutes=1, memory_gb=1, cpus=1, gpus=0, parallel=1, retries=0, tasks_per_job=1)
pytestmark = pytest.mark.timeout(3600)


def flip(path: Path, chance: random.Random) -> None:
    changed = bytearray(path.read_bytes())
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    path.write_bytes(changed)


@pytest.fixture(scope="module")
def finished(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(alone, tmp_path_factory.mktemp("finished") / "run"))


MADE = {
    "reference picture of a subject": ("artifacts/pocket/images/subjects/dog8/02.png", "bank"),
    "reference picture of a style": ("artifacts/pocket/images/styles/glowing/00.png", "fit"),
    "adapter of the bank": ("artifacts/pocket/bank/dog8.safetensors", "generate"),
    "adapter of the bank, in training": ("artifacts/pocket/bank/dog.safetensors", "fit"),
    "hypernetwork": ("artifacts/pocket/hypernet/hypernet.safetensors", "generate"),
    "generated picture": ("artifacts/pocket/generate/lorarar/test/dog8+glowing/01.png", "score"),
    "scores": ("artifacts/pocket/score/lorarar-test.parquet", "report"),
    "metrics": ("results/pocket/metrics/lorarar-test.json", "report"),
    "figures of the judge": ("results/pocket/judge.json", "report"),
}
SHIPPED = {
    "UNet": ("data/pocket/base/unet/diffusion_pytorch_model.safetensors", "bank"),
    "VAE": ("data/pocket/base/vae/diffusion_pytorch_model.safetensors", "generate"),
    "tokenizer": ("data/pocket/base/tokenizer/tokenizer.json", "generate"),
    "judge": ("data/pocket/judges/verification/subject.safetensors", "score"),
    "CLIP": ("data/pocket/judges/clip/open_clip_model.safetensors", "score"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MADE)
def test_what_was_made(finished: Path, kind: str) -> None:
    name, stage = MADE[kind]
    path, before = finished / name, content(finished, "[ar]*/pocket/**/*")
    chance = random.Random(f"{SEED} {kind}")
    for _ in range(3):
        flip(path, chance)
        status, output = call(finished, "python", "-m", f"stages.{stage}")
        assert status == 1 and "Traceback" not in output, output
        (line,) = (line for line in output.splitlines() if line.startswith("error: "))
        assert f"{name}: has changed since DVC made it; run `dvc repro`" in line
    succeed(finished, "dvc", "repro", "report")
    assert content(finished, "[ar]*/pocket/**/*") == before, "made again from what is finished in .work, nothing else"


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHIPPED)
def test_what_is_shipped(finished: Path, kind: str) -> None:
    name, stage = SHIPPED[kind]
    path, before = finished / name, content(finished, "[ar]*/pocket/**/*")
    whole = path.read_bytes()
    flip(path, random.Random(f"{SEED} {kind}"))
    for run in (
        ["python", "-m", "stages.shared.preflight"],
        ["python", "-m", f"stages.{stage}"],
        ["dvc", "repro", stage],
    ):
        status, output = call(finished, *run)
        assert status != 0 and "Traceback" not in output, output
        assert f"error: {name}: has changed; restore it with `git checkout" in output
    path.write_bytes(whole)
    succeed(finished, "dvc", "repro", "report")
    assert content(finished, "[ar]*/pocket/**/*") == before


def world(folder: Path, text: str, cache: Path) -> Path:
    """A file and a folder that DVC has made, as it notes them."""
    made = folder / "artifacts/bank/dog.bin"
    made.parent.mkdir(parents=True)
    made.write_text(text)
    figures = folder / "results/metrics.json"
    figures.parent.mkdir()
    figures.write_text("{}")
    listing = json.dumps([{"md5": hashlib.md5(text.encode()).hexdigest(), "relpath": "dog.bin"}]).encode()
    md5 = hashlib.md5(listing).hexdigest() + ".dir"
    kept = cache / "files/md5" / md5[:2] / md5[2:]
    kept.parent.mkdir(parents=True)
    kept.write_bytes(listing)
    stages = {
        "bank": {"outs": [{"path": "artifacts/bank", "md5": md5}]},
        "score": {"outs": [{"path": "results/metrics.json", "md5": hashlib.md5(b"{}").hexdigest()}]},
        "merge": {"deps": [{"path": "artifacts/bank"}]},
        "report": {"deps": [{"path": "artifacts/bank/dog.bin"}, {"path": "results"}]},
    }
    (folder / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
    return made


@pytest.mark.parametrize("cache", [".dvc/cache", "shared/cache"])
def test_a_stage_by_hand_reads_nothing_that_has_changed(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever DVC's cache is: groups share one."""
    made = world(tmp_path, "weights", tmp_path / cache)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir(exist_ok=True)
    if cache != ".dvc/cache":
        (tmp_path / ".dvc/config.local").write_text(f"[cache]\n    dir = ../{cache}\n")
    for stage in ("merge", "report", "new"):
        integrity.verify_outputs(stage)
    flip(made, random.Random(SEED))
    for stage in ("merge", "report", "new"):
        with pytest.raises(UserError, match=r"artifacts/bank/dog\.bin: has changed since DVC made it; run `dvc repro`"):
            integrity.verify_outputs(stage)
    integrity.verify_outputs("bank")  # which makes it
    made.write_text("weights")
    (tmp_path / "results/metrics.json").unlink()
    integrity.verify_outputs("merge")  # which does not read it
    with pytest.raises(UserError, match=r"results/metrics\.json: is missing since"):
        integrity.verify_outputs("report")


def test_a_finished_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, task = Store(tmp_path / "store", "code"), Task("dog", Write("weights"))
    again = [store.run([task], RESOURCES, "bank", "inline")["dog"] for _ in range(2)]
    assert again[0] == again[1]
    chance = random.Random(SEED)
    for name in ("text", ".task.json"):
        flip(again[0] / name, chance)
        store.run([task], RESOURCES, "bank", "inline")
        assert (again[0] / "text").read_text() == "weights"
    assert capsys.readouterr().out.count("damaged") >= 1


@dataclass(frozen=True)
class Write:
    text: str

    def run(self, folder: Path) -> None:
        (folder / "text").write_text(self.text)


def test_the_state_of_a_training(tmp_path: Path) -> None:
    """Bytes all over it, one at a time."""
    path, settings = tmp_path / "state", {"rate": 0.5}
    weights = [torch.arange(64.0).requires_grad_()]
    weights[0].grad = torch.ones(64)
    optimizer = torch.optim.AdamW(weights)
    optimizer.step()
    Checkpoint(path, every=1).after(1, weights, optimizer, settings)
    whole = path.read_bytes()
    for place in range(0, len(whole), 13):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(UserError, match="state: not a state of this training; delete it"):
            Checkpoint(path).resume(weights, optimizer, settings)
    path.write_bytes(whole)
    assert Checkpoint(path).resume(weights, optimizer, settings) == 1
