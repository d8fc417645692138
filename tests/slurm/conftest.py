"""A project that uses a Slurm in the test's process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm
from submitit.core import utils

from slurm import cluster, commands, job


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeSlurm:
    (tmp_path / "project" / "package").mkdir(parents=True)
    (tmp_path / "project" / "package" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path / "project")
    slurm, folder, real = FakeSlurm(), tmp_path / "bin", utils.CommandFunction
    folder.mkdir()
    for name in ("sbatch", "scontrol"):
        (folder / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def command(words: list[str], **options: Any) -> Any:
        ours = shutil.which(words[0]) == str(folder / words[0])
        return (lambda: slurm.command(words)) if ours else real(words, **options)

    monkeypatch.setattr(utils, "CommandFunction", command)
    monkeypatch.setattr(commands, "_call", slurm.call)
    monkeypatch.setattr(cluster.time, "sleep", slurm.sleep)
    monkeypatch.setattr(cluster.time, "monotonic", lambda: slurm.clock)
    monkeypatch.setattr(job, "listen", lambda: None)
    commands.configuration.cache_clear()
    commands._has_accounting.cache_clear()
    return slurm
