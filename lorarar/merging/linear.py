"""Merges with one constant weight for each adapter."""

from __future__ import annotations

from functools import partial

import torch

from lorarar.lora.adapter import Adapter
from lorarar.merging import columns
from lorarar.merging.options import require_weights


def direct(
    content: Adapter,
    style: Adapter,
    *,
    weights: tuple[float, float] = (1.0, 1.0),
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """w_c dW_c + w_s dW_s, exactly, by concatenation: peft's `cat`.

    With weights 1 and 1 it is the direct merge of LoRA.rar's comparison (Model soups, arXiv 2203.05482).
    Raises `UserError` if the adapters were made for different base models.
    """
    require_weights("weights", weights)
    return columns.merge(content, style, {}, default=weights, dtype=dtype)


average = partial(direct, weights=(0.5, 0.5))
