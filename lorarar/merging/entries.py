"""Merges of tensors entry by entry: which entries stay, which sign each elects, and the sum.

The results have the bits of peft's functions of the same names, which the tests compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lorarar.errors import UserError
from lorarar.merging.options import require

Drop = Literal["smallest", "random"]
Majority = Literal["total", "frequency"]


@dataclass(frozen=True)
class Rule:
    """A rule by which tensors of one shape become one.

    Attributes
    ----------
    drop
        At "random" drops entries and divides the others by the density (DARE); "smallest" drops the smallest ones
        (TIES, magnitude pruning).
    elects
        True elects a sign for each entry and averages what agrees with it (TIES); False sums.
    """

    drop: Drop
    elects: bool

    def merge(
        self,
        tensors: Sequence[Tensor],
        weights: Sequence[float],
        *,
        density: float,
        majority: Majority | None = None,
        random: torch.Generator,
    ) -> Tensor:
        """Merge tensors of one shape, float32.

        Parameters
        ----------
        density
            The share of entries that stay in each, in (0, 1].
        majority
            Elects each sign by the "total" of the entries that stayed, the default, or by the "frequency" of their
            signs.
        random
            The stream of the random masks, on the CPU.
        """
        if density == 1:
            kept = [tensor.clone() for tensor in tensors]
        elif self.drop == "smallest":
            kept = [keep_largest(tensor, density) for tensor in tensors]
        else:
            kept = [keep_random(tensor, density, random) for tensor in tensors]
        if self.elects and len(kept) > 1:
            return elect(kept, weights, majority or "total")
        scaled = [tensor.mul_(weight) for tensor, weight in zip(kept, weights, strict=True)]
        return reduce(Tensor.add_, scaled).add_(0.0)  # no zero is negative, as in peft

    def check(self, density: Any, majority: Any, seed: Any) -> None:
        """Raise `UserError` if an option is out of range, or elects a sign where the rule has none."""
        require("density", density, lambda share: 0 < share <= 1, "a share above 0 and up to 1")
        require("seed", seed, lambda number: isinstance(number, int), "a whole number")
        if self.elects:
            require("majority", majority, lambda name: name in (None, *get_args(Majority)), "total or frequency")
        elif majority is not None:
            raise UserError(f"majority {majority}: this method elects no sign; leave it out")


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


def elect(kept: Sequence[Tensor], weights: Sequence[float], majority: Majority) -> Tensor:
    """The mean, for each entry, of the weighted values of several tensors that have the sign of the majority.

    A zero has no sign, and a draw counts as positive. The tensors are overwritten.
    """
    signs = [tensor.sign() for tensor in kept]
    elected = reduce(torch.add, kept if majority == "total" else signs).ge_(0).mul_(2).sub_(1)
    agree = [sign.eq_(elected) for sign in signs]
    for tensor, weight, voice in zip(kept, weights, agree, strict=True):
        tensor.mul_(weight).mul_(voice)
    voices = reduce(Tensor.add_, agree).clamp_(min=1)
    return reduce(Tensor.add_, kept).div_(voices).add_(0.0)  # no zero is negative, as in peft
