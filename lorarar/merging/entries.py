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
    """The weighted sum of two sparse tensors, or with `elects` the mean of what agrees with the elected sign.

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
    merged = elect(kept, weights, majority) if elects else kept[0].mul_(weights[0]).add_(kept[1].mul_(weights[1]))
    return merged.add_(0.0)  # no zero is negative, as in peft


def keep_largest(tensor: Tensor, density: float) -> Tensor:
    """The int(density * size) entries of the largest magnitude, and zeros.

    Among equal magnitudes at the threshold, `torch.topk` chooses, as in peft.
    """
    count = int(density * tensor.numel())
    if not count:
        return tensor * 0
    magnitudes = tensor.abs().flatten()
    # Magnitudes have the order of their bits, and numpy selects whole numbers several times as fast as torch floats.
    bits = magnitudes.view(torch.int32)
    place = len(bits) - count
    parted = np.partition(bits.cpu().numpy(), place)
    if place and parted[:place].max() == parted[place]:
        mask = torch.zeros_like(magnitudes).index_fill_(0, bits.topk(count, sorted=False).indices, 1)
    else:
        mask = magnitudes.ge_(parted.view(np.float32)[place].item())
    return mask.view_as(tensor).mul_(tensor)


def keep_random(tensor: Tensor, density: float, random: torch.Generator) -> Tensor:
    """Each entry with the probability `density`, divided by it, and zeros."""
    # The draws and the comparison of `torch.bernoulli`, which takes several times as long.
    mask = torch.rand(tensor.shape, generator=random).lt_(density).to(tensor.device)
    return mask.mul_(tensor).div_(density)


def elect(kept: Sequence[Tensor], weights: Sequence[float], majority: Majority = "total") -> Tensor:
    """The mean, for each entry, of the weighted values of two tensors that have the sign of the majority.

    A zero has no sign, and a draw counts as positive. The tensors are overwritten.
    """
    signs = [tensor.sign() for tensor in kept]
    elected = torch.add(*(kept if majority == "total" else signs)).ge_(0).mul_(2).sub_(1)
    agree = [sign.eq_(elected) for sign in signs]
    for tensor, weight, voice in zip(kept, weights, agree, strict=True):
        tensor.mul_(weight).mul_(voice)
    return kept[0].add_(kept[1]).div_(agree[0].add_(agree[1]).clamp_(min=1))
