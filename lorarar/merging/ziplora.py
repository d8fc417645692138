"""ZipLoRA (arXiv 2311.13600): column coefficients fitted to one pair by gradient descent on Eq. 3."""

from __future__ import annotations

import torch

from lorarar.lora.adapter import Adapter
from lorarar.merging import columns


def merge(
    content: Adapter, style: Adapter, *, coefficients: columns.Coefficients, dtype: torch.dtype = torch.float32
) -> Adapter:
    """Merge by the coefficients that `lorarar.training.ziplora.optimise` found for this very pair."""
    return columns.merge(content, style, coefficients, dtype=dtype)
