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
from lorarar.merging.options import require, require_rank
from lorarar.merging.svd import truncate
from lorarar.randomness import generator

Space = Literal["factors", "delta"]


@dataclass(frozen=True)
class Sparse(Rule):
    """A merging method that sparsifies: `Rule` on the factors or on dW."""

    def __call__(
        self,
        content: Adapter,
        style: Adapter,
        *,
        density: float = 0.5,
        weights: tuple[float, float] = (1.0, 1.0),
        majority: Majority | None = None,
        space: Space = "factors",
        rank: int | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Adapter:
        """Merge two adapters.

        Parameters
        ----------
        density
            The share of entries that stay, in (0, 1].
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
            Only in the space "delta"; None is the layer's r_c + r_s, the rank of the exact merges.
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
        self.check(density, weights, majority, seed)
        require("space", space, lambda name: name in get_args(Space), " or ".join(get_args(Space)))
        require_rank(rank)
        if rank is not None and space == "factors":
            raise UserError(f"rank {rank}: only works with space=delta; leave it out, or choose that space")

        roots = [sqrt(abs(weight)) for weight in weights]
        signed = [copysign(root, weight) for root, weight in zip(roots, weights, strict=True)]

        rule = partial(self.merge, density=density, majority=majority)

        # Each layer has a separate random stream: down draws first, then up.
        def combine(path: str, *parts: tuple[list[Tensor], Sequence[float]]) -> list[Tensor]:
            random = generator(seed, *path.encode())
            return [rule(tensors, scales, random=random) for tensors, scales in parts]

        def merge_updates(path: str, c: Factors, s: Factors) -> Truncated:
            (update,) = combine(path, ([c.delta, s.delta], weights))
            return truncate(update, rank or c.rank + s.rank)

        def merge_factors(path: str, c: Factors, s: Factors) -> Factors:
            if (most := max(c.rank, s.rank)) != min(c.rank, s.rank):
                c, s = (
                    Factors(pad(down, (0, 0, 0, most - len(down))), pad(up, (0, most - len(down))))
                    for down, up in (c, s)
                )
            downs, ups = [c.down, s.down], [c.up, s.up]
            return Factors(*combine(path, (downs, signed), (ups, roots)))

        if space == "delta":
            return merge_truncated(merge_updates, content, style, dtype)
        return merge_layerwise(merge_factors, content, style, dtype, rank=max)
