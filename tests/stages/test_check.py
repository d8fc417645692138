"""The shipped weights are compared with their checksums before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorarar.errors import UserError
from stages.base import write_checksums
from stages.shared.integrity import verify_shipped

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    for name in ("base/unet.bin", "judges/clip/model.bin"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(name.encode())
    write_checksums(tmp_path)
    return tmp_path


def test_what_was_listed_is_accepted(folder):
    verify_shipped(folder)


def test_a_flipped_byte_is_named(folder):
    (folder / "base/unet.bin").write_bytes(b"case/unet.bin")
    with pytest.raises(UserError, match=r"base/unet\.bin: has changed; restore it with `git checkout"):
        verify_shipped(folder)


def test_a_missing_file_is_named(folder):
    (folder / "judges/clip/model.bin").unlink()
    with pytest.raises(UserError, match=r"judges/clip/model\.bin: is missing"):
        verify_shipped(folder)


@pytest.mark.parametrize("base", sorted(path.parent.name for path in ROOT.glob("data/*/SHA256SUMS")))
def test_the_weights_of_this_checkout_are_what_was_shipped(base):
    verify_shipped(ROOT / "data" / base)
    files = [path for folder in ("base", "judges") for path in (ROOT / "data" / base / folder).rglob("*")]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 40e6
