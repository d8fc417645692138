"""From a merge of one layer to a merge of adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
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
    merge_layer: Callable[..., Factors],
    *adapters: Adapter,
    dtype: torch.dtype,
    rank: Callable[[Iterable[int]], int] = sum,
) -> Adapter:
    """Merge layer by layer, lazily.

    Parameters
    ----------
    merge_layer
        (path, factors of the first adapter, of the second, ...) -> merged, all in float32. A layer that an adapter
        lacks has rank 0 there.
    dtype
        The dtype of the result.
    rank
        The ranks of a layer -> the rank of the merged layer.

    Raises
    ------
    UserError
        The adapters were made for different base models.
    """

    @torch.no_grad()
    def merge(path: str, *parts: Factors) -> Factors:
        return merge_layer(path, *(part.to(torch.float32) for part in parts)).to(dtype)

    return columns.merge_layers(merge, *adapters, dtype=dtype, rank=rank)


@torch.no_grad()
def merge_truncated(merge_layer: Callable[..., Truncated], *adapters: Adapter, dtype: torch.dtype) -> Adapter:
    """Merge as `merge_layerwise`, but at once: a file's header holds the error, which is known after the last layer.

    Returns
    -------
    Adapter
        Its metadata has `relative_error`: Frobenius, over all layers together.
    """

    def merge(path: str, *parts: Factors) -> Truncated:
        cut = merge_layer(path, *(part.to(torch.float32) for part in parts))
        return cut._replace(factors=cut.factors.to(dtype))

    layers = list(columns.aligned(*adapters))
    cuts = map_layers(merge, layers)
    error = math.sqrt(sum(cut.lost for cut in cuts) / (sum(cut.whole for cut in cuts) or 1.0))
    return Adapter.from_matrices(
        {name: cut.factors for (name, *_), cut in zip(layers, cuts, strict=True)},
        *adapters,
        metadata={"relative_error": f"{error:.6g}"} if cuts else {},
    )
