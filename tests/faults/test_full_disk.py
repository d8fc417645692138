"""A disk that is full in the middle of a write: one line, nothing half, and on it goes when there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import call, fail, make, succeed

from lorarar import pictures
from lorarar.errors import UserError
from lorarar.files import write_json
from lorarar.lora.container import write_tensors
from lorarar.scoring import score_table
from lorarar.training.checkpoint import Checkpoint

NOISE = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
ROWS = [
    score_table.Row("dog8", "glowing", i, True, True, x, x, 0, 0, True, x, x, x)
    for i, x in enumerate(np.random.default_rng(0).random(30_000).tolist())
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("to mount a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)


def save_state(path: Path) -> None:
    weights = [torch.zeros(100_000, requires_grad=True)]
    Checkpoint(path, every=1).after(1, weights, torch.optim.AdamW(weights), {})


WRITERS: dict[str, Callable[[Path], None]] = {
    "figures.json": lambda path: write_json(path, ["0123456789"] * 100_000),
    "adapter.safetensors": lambda path: write_tensors(path, {"a": torch.ones(1_000_000)}),
    "picture.png": lambda path: pictures.write(path, NOISE),
    "scores.parquet": lambda path: score_table.write(path, ROWS),
    "training.state": save_state,
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_kind_of_file_is_whole_or_not_there(disk: Path, name: str) -> None:
    path = disk / name
    with pytest.raises(UserError, match=f"{name}: no space left on the disk; free some and run again"):
        WRITERS[name](path)
    assert list(disk.iterdir()) == []
    enlarge(disk)
    WRITERS[name](path)
    assert [path] == list(disk.iterdir()) and path.stat().st_size > 1 << 18


def test_a_disk_may_end_at_any_page_of_a_file(disk: Path) -> None:
    tensors = {f"layer{i}": torch.full((64,), float(i)) for i in range(200)}
    texts = {"sources": "0" * 64}
    (path, filling), page = (disk / "adapter.safetensors", disk / "filling"), 4096
    write_tensors(path, tensors, texts)
    whole, refused = path.read_bytes(), 0
    for pages in range(len(whole) // page + 3):
        path.unlink(missing_ok=True)
        filling.write_bytes(bytes((64 - pages) * page))
        try:
            write_tensors(path, tensors, texts)
        except UserError:
            refused += 1
            assert not path.exists()
        else:
            assert path.read_bytes() == whole
    assert refused == -(-len(whole) // page)


@pytest.mark.slow
def test_a_stage_goes_on_when_there_is_room(disk: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "chain", ["truth"])
    (folder / ".work").symlink_to(disk)
    (disk / "filling").write_bytes(bytes(200 << 10))
    fail(folder, "no space left", "python", "-m", "stages.images")
    assert not (folder / "artifacts").exists()
    enlarge(disk)
    succeed(folder, "python", "-m", "stages.images")
    assert len(list((folder / "artifacts/pocket/images").rglob("*.png"))) == 16 + 3
    assert not list(disk.rglob(".*"))


def test_the_command_says_so_too(disk: Path, tmp_path: Path) -> None:
    names = [tmp_path / f"{name}.safetensors" for name in ("content", "style")]
    for path in names:
        write_tensors(
            path,
            {
                "unet.mid_block.attentions.0.proj_in.lora.down.weight": torch.ones(4, 20_000),
                "unet.mid_block.attentions.0.proj_in.lora.up.weight": torch.ones(8, 4),
            },
        )
    merge = ["lorarar", "merge", *map(str, names), "-o", str(disk / "both.safetensors"), "-m", "direct"]
    status, output = call(tmp_path, *merge)
    expected = f"error: {disk}/both.safetensors: no space left on the disk; free some and run again"
    assert (status, output.strip()) == (2, expected)
    assert list(disk.iterdir()) == []
