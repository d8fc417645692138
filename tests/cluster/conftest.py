"""The cluster of the tests, and a project that uses it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import DAEMONS, Cluster, Project, call, until


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not os.environ.get("TEST_CLUSTER"):
        pytest.skip("a real Slurm is started only by `make test-cluster`")
    if missing := [name for name in DAEMONS if not shutil.which(name)]:
        pytest.fail(f"no {' '.join(missing)} here: apt-get install slurm-wlm munge")
    if os.geteuid():
        pytest.fail("Slurm's daemons need root")
    running = Cluster(tmp_path_factory.mktemp("slurm"))
    yield running
    running.stop()


@pytest.fixture
def project(cluster: Cluster, tmp_path: Path) -> Iterator[Project]:
    cluster.wait_for("idle", "n1", "n2")
    yield Project(tmp_path)
    call("scancel", "--user=root")
    until(lambda: not call("squeue", "-h"))
