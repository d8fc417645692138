"""Merges that drop entries first: DARE, TIES, DARE-TIES and magnitude pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import copysign, sqrt
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter, Factors
from lorarar.merging.entries import Majority, Rule
from lorarar.merging.layerwise import Truncated, merge_layerwise, merge_truncated
from lorarar.merging.options import require, require_rank, weights_of
from lorarar.merging.svd import truncate
from lorarar.randomness import generator

Space = Literal["factors", "delta"]


@dataclass(frozen=True)
class Sparse(Rule):
    """A merging method that sparsifies: `Rule` on the factors or on dW."""

    def __call__(
        self,
        *adapters: Adapter,
        density: float = 0.5,
        weights: Sequence[float] | None = None,
        majority: Majority | None = None,
        space: Space = "factors",
        rank: int | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Adapter:
        """Merge any number of adapters.

        Parameters
        ----------
        density
            The share of entries that stay, in (0, 1].
        weights
            A weight for each adapter; None is 1 for each. A sign is elected before weights count, as in peft: there an
            adapter of weight 0 still has a voice.
        majority
            The sign is elected by "total" magnitude, as published and the default, or by the "frequency" of signs.
            Only TIES and DARE-TIES take it.
        space
            "factors" is peft's `add_weighted_adapter`, which LoRA.rar's comparison uses: down and up are merged
            separately, with the square root of the weight on each, so that the product has cross terms. It equals
            peft's result if both adapters have one alpha / r, which is folded into `up` here. peft refuses different
            ranks; here the smaller factors are padded with zeros. "delta" is the published definition, on dW itself,
            cut to `rank`.
        rank
            Only in the space "delta"; None is the sum of the layer's ranks, as in the exact merges.
        seed
            The seed of DARE. Each layer has a separate stream, so that its result does not depend on the others.

        Returns
        -------
        Adapter
            In the space "delta", `relative_error` in its metadata is the share that the rank leaves out.

        Raises
        ------
        UserError
            An option is out of range or has no meaning here, or the adapters were made for different base models.
        """
        self.check(density, majority, seed)
        scales = weights_of(weights, len(adapters))
        require("space", space, lambda name: name in get_args(Space), " or ".join(get_args(Space)))
        require_rank(rank)
        if rank is not None and space == "factors":
            raise UserError(f"rank {rank}: only works with space=delta; leave it out, or choose that space")

        roots = [sqrt(abs(weight)) for weight in scales]
        signed = [copysign(root, weight) for root, weight in zip(roots, scales, strict=True)]

        rule = partial(self.merge, density=density, majority=majority)

        # Each layer has a separate random stream: down draws first, then up.
        def combine(path: str, *sides: tuple[list[Tensor], Sequence[float]]) -> list[Tensor]:
            random = generator(seed, *path.encode())
            return [rule(tensors, scales, random=random) for tensors, scales in sides]

        def merge_updates(path: str, *parts: Factors) -> Truncated:
            (update,) = combine(path, ([part.delta for part in parts], scales))
            return truncate(update, rank or sum(part.rank for part in parts))

        def merge_factors(path: str, *parts: Factors) -> Factors:
            most = max(part.rank for part in parts)
            downs = [pad(d, (0, 0, 0, most - len(d))) if len(d) < most else d for d, _ in parts]
            ups = [pad(u, (0, most - u.shape[1])) if u.shape[1] < most else u for _, u in parts]
            return Factors(*combine(path, (downs, signed), (ups, roots)))

        if space == "delta":
            return merge_truncated(merge_updates, *adapters, dtype=dtype)
        return merge_layerwise(merge_factors, *adapters, dtype=dtype, rank=max)


dare = Sparse("random", elects=False)
ties = Sparse("smallest", elects=True)
dare_ties = Sparse("random", elects=True)
magnitude_prune = Sparse("smallest", elects=False)
