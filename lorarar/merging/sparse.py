"""Merges that drop entries first: DARE, TIES, DARE-TIES and magnitude pruning, each with a function of peft."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import copysign, sqrt
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter, Factors
from lorarar.merging.layerwise import Truncated, merge_layerwise, merge_truncated
from lorarar.merging.options import require, require_rank, require_weights
from lorarar.merging.svd import truncate
from lorarar.randomness import generator, seeded

Space = Literal["factors", "delta"]
Majority = Literal["total", "frequency"]


@dataclass(frozen=True)
class Sparse:
    """A merging method that sparsifies.

    Attributes
    ----------
    function
        Of `peft.utils.merge_utils`. `dare_*` drops entries at random and divides the others by the density; `ties`
        and `magnitude_prune` drop the smallest ones. `*ties` then elects a sign for each entry and averages what
        agrees with it, the others sum.
    """

    function: Literal["dare_linear", "ties", "dare_ties", "magnitude_prune"]

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
        from peft.utils import merge_utils

        elects = self.function.endswith("ties")
        require("density", density, lambda share: 0 < share <= 1, "a share above 0 and up to 1")
        require_weights("weights", weights)
        require("space", space, lambda name: name in get_args(Space), " or ".join(get_args(Space)))
        require_rank(rank)
        require("seed", seed, lambda number: isinstance(number, int), "a whole number")
        if elects:
            require("majority", majority, lambda name: name in (None, *get_args(Majority)), "total or frequency")
        elif majority is not None:
            raise UserError(f"majority {majority}: this method elects no sign; leave it out")
        if rank is not None and space == "factors":
            raise UserError(f"rank {rank}: only works with space=delta; leave it out, or choose that space")

        def combine(*tensors: Tensor, scales: Sequence[float]) -> Tensor:
            options = [majority] if majority else []
            return getattr(merge_utils, self.function)([*tensors], torch.tensor(scales), density, *options)

        roots = [sqrt(abs(weight)) for weight in weights]
        signed = [copysign(root, weight) for root, weight in zip(roots, weights, strict=True)]

        def merge_updates(path: str, c: Factors, s: Factors) -> Truncated:
            with _stream(seed, path):
                update = combine(c.delta, s.delta, scales=weights)
            return truncate(update, rank or c.rank + s.rank)

        def merge_factors(path: str, c: Factors, s: Factors) -> Factors:
            most = max(c.rank, s.rank)
            with _stream(seed, path):
                return Factors(
                    combine(*(pad(down, (0, 0, 0, most - len(down))) for down in (c.down, s.down)), scales=signed),
                    combine(*(pad(up, (0, most - up.shape[1])) for up in (c.up, s.up)), scales=roots),
                )

        if space == "delta":
            return merge_truncated(merge_updates, content, style, dtype)
        return merge_layerwise(merge_factors, content, style, dtype, rank=max)


def _stream(seed: int, path: str) -> AbstractContextManager[None]:
    """The layer's random numbers, which do not depend on other layers."""
    return seeded(generator(seed, *path.encode()).initial_seed())
