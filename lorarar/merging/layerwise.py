"""From a merge of one layer to a merge of adapters."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import add
from typing import NamedTuple

import torch

from lorarar.lora.adapter import Adapter, Factors
from lorarar.merging import columns
from lorarar.parallel import map_layers


class Truncated(NamedTuple):
    """A layer that was cut to a rank."""

    factors: Factors
    lost: float  # squared Frobenius norm of the part that was cut off
    whole: float  # and of the update before the cut


def merge_layerwise(
    merge_layer: Callable[[str, Factors, Factors], Factors],
    content: Adapter,
    style: Adapter,
    dtype: torch.dtype,
    rank: Callable[[int, int], int] = add,
) -> Adapter:
    """Merge layer by layer, lazily.

    Parameters
    ----------
    merge_layer
        (path, content, style) -> merged, all in float32. A layer that one adapter lacks has rank 0 there.
    dtype
        The dtype of the result.
    rank
        (r_c, r_s) -> rank of the merged layer.

    Raises
    ------
    UserError
        The adapters were made for different base models.
    """

    @torch.no_grad()
    def merge(path: str, c: Factors, s: Factors) -> Factors:
        return merge_layer(path, c.to(torch.float32), s.to(torch.float32)).to(dtype)

    return columns.merge_layers(merge, content, style, dtype, rank)


@torch.no_grad()
def merge_truncated(
    merge_layer: Callable[[str, Factors, Factors], Truncated], content: Adapter, style: Adapter, dtype: torch.dtype
) -> Adapter:
    """Merge as `merge_layerwise`, but at once: a file's header holds the error, which is known after the last layer.

    Returns
    -------
    Adapter
        Its metadata has `relative_error`: Frobenius, over all layers together.
    """

    def merge(path: str, c: Factors, s: Factors) -> Truncated:
        cut = merge_layer(path, c.to(torch.float32), s.to(torch.float32))
        return cut._replace(factors=cut.factors.to(dtype))

    pairs = list(columns.pairs(content, style))
    cuts = map_layers(merge, pairs)
    error = math.sqrt(sum(cut.lost for cut in cuts) / (sum(cut.whole for cut in cuts) or 1.0))
    return Adapter.from_matrices(
        {name: cut.factors for (name, _, _), cut in zip(pairs, cuts, strict=True)},
        content,
        style,
        metadata={"relative_error": f"{error:.6g}"} if cuts else {},
    )
