"""Merges of tensors entry by entry: which entries stay, which sign each elects, and the sum.

The results have the bits of peft's functions of the same names, which the tests compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Drop = Literal["smallest", "random"]
Majority = Literal["total", "frequency"]


def merge(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    density: float,
    drop: Drop,
    elects: bool,
    majority: Majority = "total",
    random: torch.Generator,
) -> Tensor:
    """The weighted sum of sparse tensors, or with `elects` the mean of the entries that agree with the elected sign.

    Parameters
    ----------
    tensors
        Of one shape, float32.
    density
        The share of entries that stay in each, in (0, 1].
    drop
        The "smallest" entries go (TIES, magnitude pruning), or entries at "random" (DARE).
    majority
        What elects a sign: the "total" of the entries that stayed, or the "frequency" of their signs.
    random
        The stream of the "random" masks, on the CPU.
    """
    if density == 1:
        kept = [tensor.clone() for tensor in tensors]
    elif drop == "smallest":
        kept = [keep_largest(tensor, density) for tensor in tensors]
    else:
        kept = [keep_random(tensor, density, random) for tensor in tensors]
    return (elect(kept, weights, majority) if elects else _sum(kept, weights)).add_(0.0)  # no zero is negative


def keep_largest(tensor: Tensor, density: float) -> Tensor:
    """The int(density * size) entries of the largest magnitude, and zeros.

    Among equal magnitudes at the threshold, `torch.topk` chooses, as in peft.
    """
    count = int(density * tensor.numel())
    if not count:
        return tensor * 0
    magnitudes = tensor.abs().flatten()
    # Magnitudes have the order of their bits, and numpy selects whole numbers several times as fast as torch floats.
    bits = magnitudes.cpu().numpy().view(np.int32)
    place = len(bits) - count
    threshold = float(np.partition(bits, place)[place : place + 1].view(np.float32)[0])
    mask = (magnitudes >= threshold).to(tensor.dtype)
    if torch.count_nonzero(mask) != count:  # the threshold has equals, or is NaN
        mask.zero_()[magnitudes.topk(count, sorted=False).indices] = 1
    return mask.view_as(tensor).mul_(tensor)


def keep_random(tensor: Tensor, density: float, random: torch.Generator) -> Tensor:
    """Each entry with the probability `density`, divided by it, and zeros."""
    # The draws and the comparison of `torch.bernoulli`, which takes several times as long.
    mask = torch.rand(tensor.shape, generator=random).lt_(density).to(tensor.device)
    return mask.mul_(tensor).div_(density)


def elect(kept: Sequence[Tensor], weights: Sequence[float], majority: Majority = "total") -> Tensor:
    """For each entry, the mean of the weighted values that have the sign of the majority; zeros have none.

    A draw counts as positive. `kept` is overwritten.
    """
    signs = [tensor.sign() for tensor in kept]
    votes = _sum(kept if majority == "total" else signs)
    elected = votes.ge_(0).mul_(2).sub_(1)
    agree = [sign.eq_(elected) for sign in signs]
    for tensor, voice in zip(kept, agree, strict=True):
        tensor.mul_(voice)
    return _sum(kept, weights).div_(_sum(agree).clamp_(min=1))


def _sum(tensors: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The weighted sum."""
    first, *rest = tensors if weights is None else [t.mul(w) for t, w in zip(tensors, weights, strict=True)]
    total = first.clone() if weights is None else first
    for tensor in rest:
        total += tensor
    return total
