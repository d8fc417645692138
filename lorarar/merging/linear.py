"""Merges with one constant weight for each adapter."""

from __future__ import annotations

from functools import partial
from math import hypot
from typing import Literal

import torch

from lorarar.lora.adapter import Adapter
from lorarar.merging import columns
from lorarar.merging.options import require, require_weights
from lorarar.parallel import map_layers


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


@torch.no_grad()
def balanced(
    content: Adapter,
    style: Adapter,
    *,
    per: Literal["total", "layer"] = "total",
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """dW_c + |dW_c| / |dW_s| dW_s, exactly: the sum with the style's update as large as the content's.

    Parameters
    ----------
    per
        "total" takes the Frobenius norms over all layers, "layer" those of each layer. Where one of them is 0, the
        ratio is 1.

    Raises
    ------
    UserError
        `per` is unknown, or the adapters were made for different base models.
    """
    require("per", per, lambda name: name in ("total", "layer"), "total or layer")
    pairs = {path: (c, s) for path, c, s in columns.pairs(content, style)}
    norms = dict(zip(pairs, map_layers(lambda c, s: (c.norm, s.norm), pairs.values()), strict=True))
    if per == "total":
        whole = hypot(*(c for c, _ in norms.values())), hypot(*(s for _, s in norms.values()))
        norms = dict.fromkeys(norms, whole)
    ratios = {path: torch.tensor(c / s if c and s else 1.0) for path, (c, s) in norms.items()}
    coefficients = {path: (torch.ones(()), ratio) for path, ratio in ratios.items()}
    return columns.merge(content, style, coefficients, dtype=dtype)


balanced_layers = partial(balanced, per="layer")
