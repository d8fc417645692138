"""Merges with one constant weight for each adapter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import hypot
from typing import Literal

import torch

from lorarar.lora.adapter import Adapter
from lorarar.merging import columns
from lorarar.merging.options import require, weights_of
from lorarar.parallel import map_layers


def direct(*adapters: Adapter, weights: Sequence[float] | None = None, dtype: torch.dtype = torch.float32) -> Adapter:
    """The sum of w_i dW_i, exactly, by concatenation: peft's `cat`.

    Parameters
    ----------
    weights
        A weight for each adapter; None is 1 for each. For two adapters that is the direct merge of LoRA.rar's
        comparison (Model soups, arXiv 2203.05482).

    Raises
    ------
    UserError
        A weight is no number, or the adapters were made for different base models.
    """
    return columns.weighted(*adapters, weights=weights_of(weights, len(adapters)), dtype=dtype)


def average(*adapters: Adapter, weights: Sequence[float] | None = None, dtype: torch.dtype = torch.float32) -> Adapter:
    """The sum of w_i dW_i as in `direct`, where None is 1 / N for each of N adapters: their mean."""
    return direct(*adapters, weights=(1 / len(adapters),) * len(adapters) if weights is None else weights, dtype=dtype)


@torch.no_grad()
def balanced(
    *adapters: Adapter,
    weights: Sequence[float] | None = None,
    per: Literal["total", "layer"] = "total",
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """The sum of w_i |dW_1| / |dW_i| dW_i, exactly: every update is made as large as the first, the content's.

    Parameters
    ----------
    weights
        A weight for each adapter; None is 1 for each.
    per
        "total" takes the Frobenius norms over all layers, "layer" those of each layer. Where one of them is 0, the
        ratio is 1.

    Raises
    ------
    UserError
        An option is out of range, or the adapters were made for different base models.
    """
    require("per", per, lambda name: name in ("total", "layer"), "total or layer")
    scales = weights_of(weights, len(adapters))
    layers = {path: parts for path, *parts in columns.aligned(*adapters)}
    found = map_layers(lambda *parts: [part.norm for part in parts], map(tuple, layers.values()))
    if per == "total":
        found = [[hypot(*norms) for norms in zip(*found, strict=True)]] * len(found)
    coefficients = {
        path: [
            torch.tensor(scale * (norms[0] / norm if norms[0] and norm else 1.0))
            for scale, norm in zip(scales, norms, strict=True)
        ]
        for path, norms in zip(layers, found, strict=True)
    }
    return columns.weighted(*adapters, weights=scales, coefficients=coefficients, dtype=dtype)


balanced_layers = partial(balanced, per="layer")
