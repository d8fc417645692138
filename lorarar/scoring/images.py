"""Pictures as the scorers see them, and the one similarity they share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from PIL import Image as PilImage

Image = npt.NDArray[np.uint8]
"""A picture: (height, width, 3), RGB, 0 to 255."""


def as_pil(images: Iterable[Image], longest_side: int | None = None) -> list[PilImage.Image]:
    """Pillow images, the form in which published preprocessing pipelines take pictures.

    Parameters
    ----------
    images : any sizes.
    longest_side : larger pictures are reduced until their longer side is this many pixels.
    """
    from PIL import Image as PilImage

    pictures = [PilImage.fromarray(image) for image in images]
    if longest_side is not None:
        for picture in pictures:
            picture.thumbnail((longest_side, longest_side), PilImage.Resampling.BICUBIC)
    return pictures


def mean_cosine(features: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Mean cosine similarity of each image to all references, as in DreamBooth.

    Parameters
    ----------
    features : (n, d) unit vectors of the images under test.
    references : (m, d) unit vectors of the references.

    Returns
    -------
    (n,) values in [-1, 1].
    """
    if len(references) == 0:
        raise ValueError("at least one reference is needed")
    return (features @ references.T).mean(dim=1)


def batches(items: Any, size: int) -> Iterable[Any]:
    """Consecutive slices of at most `size` items of a list or of an array's first axis."""
    return (items[start : start + size] for start in range(0, len(items), size))
