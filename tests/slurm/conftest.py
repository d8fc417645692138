"""A project that uses a Slurm in the test's own process."""

from __future__ import annotations

from pathlib import Path

import pytest
import submitit
from fake_slurm import FakeSlurm
from submitit.core import utils

from slurm import cluster, commands, job


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeSlurm:
    (tmp_path / "project" / "package").mkdir(parents=True)
    (tmp_path / "project" / "package" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path / "project")
    slurm = FakeSlurm()
    monkeypatch.setattr(commands, "_call", slurm.call)
    monkeypatch.setattr(commands.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda _: 2))
    monkeypatch.setattr(utils, "CommandFunction", lambda words, **_: lambda: slurm.command(words))
    monkeypatch.setattr(cluster.time, "sleep", slurm.sleep)
    monkeypatch.setattr(cluster.time, "monotonic", lambda: slurm.clock)
    monkeypatch.setattr(job, "listen", lambda: None)
    commands.configuration.cache_clear()
    commands._has_accounting.cache_clear()
    return slurm
