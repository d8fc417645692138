"""The pocket bank trained by arrays of jobs is the one trained in one process, and so is the hypernetwork, one job."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import ROOT, Cluster

from slurm.local import ONE_THREAD

pytestmark = pytest.mark.timeout(600)
TRAINING = {"learning_rate": 0.002, "steps": 4, "batch_size": 2}


def stage(folder: Path, name: str, executor: str) -> str:
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["executor"] = executor
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    # As a user's shell has it: no number of threads is set.
    environment = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{name}"], cwd=folder, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_bank_and_hypernetwork_from_slurm_equal_the_inline_ones_bit_for_bit(cluster: Cluster, tmp_path: Path) -> None:
    for name in ("data", "lorarar", "slurm", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    bank = {"subjects": ["dog", "vase", "dog8"], "styles": ["sticker", "line_drawing", "glowing"], "rank": 2}
    params["recipes"]["pocket"]["bank"] = {**bank, "subject": dict(TRAINING), "style": dict(TRAINING)}
    params["resources"]["pocket"]["bank"] |= {"tasks_per_job": 1, "memory_gb": 2}
    params["recipes"]["pocket"]["hypernet"] |= {"steps": 3, "batch_size": 1}
    params["resources"]["pocket"]["hypernet"] |= {"memory_gb": 2}
    params["evaluate"]["methods"], params["headline_method"] = ["lorarar"], "lorarar"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    stage(tmp_path, "images", "inline")
    stage(tmp_path, "bank", "inline")
    folder = tmp_path / "artifacts/pocket/bank"
    inline = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(tmp_path / ".work")
    shutil.rmtree(folder)
    stage(tmp_path, "bank", "slurm")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == inline and len(inline) == 6
    scripts = list(tmp_path.glob(".work/pocket/bank/.jobs/arrays/*/*_submission.sh"))
    assert len([script for script in scripts if not script.is_symlink()]) == 2, "six jobs, at five to an array"

    network = tmp_path / "artifacts/pocket/hypernet/hypernet.safetensors"
    stage(tmp_path, "fit", "inline")
    inline_network = network.read_bytes()
    shutil.rmtree(tmp_path / ".work/pocket/hypernet")
    network.unlink()
    stage(tmp_path, "fit", "slurm")
    assert network.read_bytes() == inline_network
