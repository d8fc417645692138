"""Two clean runs agree to the byte, wherever tasks run; and what was run by other versions says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from chain import change, content, make, succeed

from stages.shared.preflight import other_versions


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_process_and_two_make_the_same(alone: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", executor="local")
    change(other, lambda params: params.update(workers=2))
    succeed(other, "dvc", "repro")
    for pattern in ("results/pocket/**/*", "artifacts/pocket/**/*"):
        expected = content(alone, pattern)
        assert expected and content(other, pattern) == expected


def test_other_versions_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("# torch==1\nnumpy==1.0 \\\n    --hash=sha256:00\npytest==9.0.0\nno-such-package==2\n")
    monkeypatch.setattr("stages.shared.preflight.version", {"numpy": "2.0", "pytest": "9.0.0"}.__getitem__)
    monkeypatch.setattr("stages.shared.preflight.PackageNotFoundError", KeyError)
    assert other_versions(lock) == ["numpy 2.0 (1.0)"]
