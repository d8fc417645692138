"""Merges adapters layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from lorarar.lora.adapter import Adapter, Factors
from lorarar.merge import columns


class Truncated(NamedTuple):
    """A layer that was cut to a rank."""

    factors: Factors
    lost: float  # squared Frobenius norm of what was cut off
    whole: float  # and of the update as it was before


LayerMerge = Callable[[str, Factors, Factors], Factors | Truncated]
"""(path, content, style) -> merged, all in float32. A layer that one adapter lacks has rank 0 there."""


@torch.no_grad()
def merge_layerwise(merge_layer: LayerMerge, content: Adapter, style: Adapter, dtype: torch.dtype) -> Adapter:
    """Merge layer by layer, each cast to `dtype` at once, so that only one is held in float32.

    Returns
    -------
    Adapter
        If layers were cut to a rank, its metadata has `relative_error`: Frobenius, over all layers together.

    Raises
    ------
    UserError
        The adapters were made for different base models.
    """
    layers: dict[str, Factors] = {}
    lost, whole = [], []
    for path, c, s in columns.pairs(content, style):
        merged = merge_layer(path, *(Factors(factors.down.float(), factors.up.float()) for factors in (c, s)))
        if isinstance(merged, Truncated):
            lost.append(merged.lost)
            whole.append(merged.whole)
            merged = merged.factors
        layers[path] = Factors(merged.down.to(dtype), merged.up.to(dtype))
    error = math.sqrt(sum(lost) / (sum(whole) or 1.0))
    metadata = {"relative_error": f"{error:.6g}"} if whole else {}
    return Adapter(layers, metadata, unmerged=columns.add_unmerged(content, style, dtype))
