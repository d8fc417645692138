"""One run that is left alone, to compare others with."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from chain import make, succeed


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make(tmp_path_factory.mktemp("alone") / "run")
    begun = time.monotonic()
    succeed(folder, "dvc", "repro")
    (folder / "seconds").write_text(str(time.monotonic() - begun))
    return folder
