"""Pictures in the form that scoring models take, and the similarity that CLIP-I and DINO share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from PIL import Image

from lorarar.pictures import Picture

if TYPE_CHECKING:
    import torch


def as_pil(images: Iterable[Picture], longest_side: int | None = None) -> list[Image.Image]:
    """Converts pictures to Pillow images, which published preprocessing pipelines take.

    Parameters
    ----------
    images : any sizes.
    longest_side : larger pictures are reduced until their longer side is this many pixels.
    """
    pictures = [Image.fromarray(image) for image in images]
    if longest_side is not None:
        for picture in pictures:
            picture.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
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
    """Yields consecutive slices of at most `size` items of a list or of an array's first axis."""
    return (items[start : start + size] for start in range(0, len(items), size))
