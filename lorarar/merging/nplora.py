"""NP-LoRA (arXiv 2511.11051): the content's update leaves out the directions that the style's update reads."""

from __future__ import annotations

from math import inf

import torch

from lorarar.lora.adapter import Adapter, Factors
from lorarar.merging import columns
from lorarar.merging.layerwise import merge_layerwise
from lorarar.merging.options import require
from lorarar.merging.svd import decompose


def merge(
    content: Adapter, style: Adapter, *, mu: float = 0.5, hard: bool = False, dtype: torch.dtype = torch.float32
) -> Adapter:
    """dW_s + dW_c (I - mu / (1 + mu) V V^T), V (n_in, k) the right singular vectors of dW_s, k its rank.

    Exact, of rank r_c + r_s: the projection changes only down_c.

    Parameters
    ----------
    mu
        Strength of the soft projection; 0 is the direct merge.
    hard
        Project out all of V: mu to infinity.

    Raises
    ------
    UserError
        An option is out of range, or the adapters were made for different base models.
    """
    require("mu", mu, lambda number: 0 <= number < inf, "0 or more")
    require("hard", hard, lambda choice: choice in (True, False), "True or False")
    strength = 1.0 if hard else mu / (1 + mu)

    def merge_layer(path: str, c: Factors, s: Factors) -> Factors:
        _, sigma, vh = decompose(s)
        # Beyond the numerical rank of dW_s, singular vectors are arbitrary.
        vh = vh[sigma > sigma.norm() * max(vh.shape) * torch.finfo(sigma.dtype).eps]
        return columns.concatenate(Factors(c.down - strength * (c.down @ vh.T) @ vh, c.up), s)

    return merge_layerwise(merge_layer, content, style, dtype=dtype)
