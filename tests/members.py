"""Members of a bank for the tiny base: an adapter, a picture and a prompt each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lorarar import pictures
from lorarar.lora.adapter import Adapter
from stages.shared.bank_members import Member


def member(folder: Path, name: str, adapter: Adapter | Path, shade: int) -> Member:
    """A member whose picture has one shade of grey; a path is linked to, not copied."""
    picture, file = folder / name / "00.png", folder / f"{name}.safetensors"
    picture.parent.mkdir(parents=True)
    pictures.write(picture, np.full((16, 16, 3), shade, np.uint8))
    if isinstance(adapter, Path):
        file.hardlink_to(adapter)
    else:
        adapter.save(file)
    return Member(str(file), (str(picture),), name)
