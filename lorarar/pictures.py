"""Pictures on disk and as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from lorarar.errors import UserError
from lorarar.files import atomic

if TYPE_CHECKING:
    from torch import Tensor

Picture = npt.NDArray[np.uint8]
"""(height, width, 3), RGB, 0 to 255."""


def read(path: Path | str) -> Picture:
    """Read one picture.

    Raises
    ------
    UserError
        The file is missing, or no whole picture.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such picture; delete its folder and run `dvc repro` again") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable picture ({error}); delete it and run `dvc repro` again") from None


def read_all(folder: Path | str) -> list[Picture]:
    """Read the pictures `00.png`, `01.png` and so on of a folder.

    Raises
    ------
    UserError
        There is none, one before the last is missing, or one cannot be read.
    """
    number = len(list(Path(folder).glob("*.png")))
    return [read(Path(folder) / f"{index:02}.png") for index in range(max(number, 1))]


def write(path: Path | str, picture: Picture) -> None:
    """Write a PNG, whole or not at all; equal pictures make equal bytes."""
    with atomic(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def as_tensor(pictures: Sequence[Picture] | np.ndarray) -> Tensor:
    """Converts pictures (N, H, W, 3) of one size to float32 (N, 3, H, W) in [-1, 1]."""
    import torch

    stacked = np.ascontiguousarray(np.stack(list(pictures)))
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1
