"""Singular value decomposition: the best merge of a given rank, and the cuts that other methods build on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorarar.lora.adapter import Adapter, Factors
from lorarar.merging import columns
from lorarar.merging.layerwise import Truncated, merge_truncated
from lorarar.merging.options import require_rank, weights_of
from lorarar.randomness import seeded

OVERSAMPLING = 32
"""Extra dimensions of the randomised SVD. With 4 iterations it lost at most 0.2% more than the optimum on pruned
updates of 640 x 640, whose spectrum is flat: its worst case."""


def merge(
    *adapters: Adapter,
    rank: int | None = None,
    weights: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """The best approximation of the sum of w_i dW_i of a given rank, as peft's `svd`, but without forming dW.

    Parameters
    ----------
    rank
        None is the largest of the layer's.
    weights
        A weight for each adapter; None is 1 for each.

    Returns
    -------
    Adapter
        `relative_error` in its metadata is the share of the update that the rank leaves out.

    Raises
    ------
    UserError
        An option is out of range, or the adapters were made for different base models.
    """
    require_rank(rank)
    scales = weights_of(weights, len(adapters))

    def merge_layer(path: str, *parts: Factors) -> Truncated:
        u, sigma, vh = decompose(columns.concatenate(*parts, weights=scales))
        k = rank or max(part.rank for part in parts)
        return Truncated(_cut(u, sigma, vh, k), float(sigma[k:].square().sum()), float(sigma.square().sum()))

    return merge_truncated(merge_layer, *adapters, dtype=dtype)


def decompose(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """U (m_out, k), sigma (k,), V^T (k, n_in) of up @ down: QR of each factor, then the SVD of an r x r core."""
    q_up, r_up = torch.linalg.qr(factors.up)
    q_down, r_down = torch.linalg.qr(factors.down.T)
    u, sigma, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return q_up @ u, sigma, vh @ q_down.T


def truncate(update: Tensor, rank: int) -> Truncated:
    """The best approximation of dW (m_out, n_in) of a given rank.

    Found by a randomised SVD, with a fixed seed, where the rank is far below both sides.
    """
    size = rank + OVERSAMPLING
    if 4 * size <= min(update.shape):
        with seeded(0):
            u, sigma, v = torch.svd_lowrank(update, q=size, niter=4)
        vh = v.T
    else:
        u, sigma, vh = torch.linalg.svd(update, full_matrices=False)
    factors = _cut(u, sigma, vh, rank)
    return Truncated(factors, float((update - factors.delta).square().sum()), float(update.square().sum()))


def _cut(u: Tensor, sigma: Tensor, vh: Tensor, rank: int) -> Factors:
    # The root on both sides keeps either factor's numbers in the range of half precision.
    root = sigma[:rank].sqrt()
    return Factors(root[:, None] * vh[:rank], u[:, :rank] * root)
