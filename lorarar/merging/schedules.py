"""Merges over time without a search: in each denoising step a layer is of one adapter."""

from __future__ import annotations

from math import ceil, inf

import torch

from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter, Factors
from lorarar.merging import columns
from lorarar.merging.klora import Schedule, owners, taking_turns
from lorarar.merging.options import require
from lorarar.parallel import map_layers


def split(content: Adapter, style: Adapter, *, share: float = 0.5, dtype: torch.dtype = torch.float32) -> Schedule:
    """The content in a first share of the denoising steps, then the style: the fixed selection of K-LoRA's paper.

    Parameters
    ----------
    share
        In [0, 1]; 0 is the style alone.

    Raises
    ------
    UserError
        An option is out of range, or the adapters were made for different base models.
    """
    require("share", share, lambda number: 0 <= number <= 1, "a share from 0 to 1")
    return Schedule(content.to(dtype), style.to(dtype), dict.fromkeys(taking_turns(content, style), (share,)))


def switch(*adapters: Adapter, period: float = 0.1, dtype: torch.dtype = torch.float32) -> Schedule:
    """The adapters in turn, in their order: LoRA Switch (arXiv 2402.16843).

    A layer takes turns among the adapters that have it; one that a single adapter has is always on.

    Parameters
    ----------
    period
        The share of denoising, in (0, 1], for which each is active: tau / T if they change every tau of T steps. The
        default is that of 5 in 50 steps.

    Raises
    ------
    UserError
        An option is out of range, or the adapters were made for different base models.
    """
    require("period", period, lambda number: 0 < number <= 1, "a share above 0 and up to 1")
    if len(adapters) < 2:
        raise UserError("method switch: takes turns among two adapters or more; give another")
    list(columns.aligned(*adapters))  # of one base model
    turns = tuple(turn * period for turn in range(1, ceil(1 / period)))
    paths = sorted(set().union(*(adapter.layers for adapter in adapters)))
    content, style, *more = (adapter.to(dtype) for adapter in adapters)
    shared = (path for path in paths if len(owners(path, adapters)) > 1)
    return Schedule(content, style, dict.fromkeys(shared, turns), more=tuple(more))


@torch.no_grad()
def est(
    content: Adapter,
    style: Adapter,
    *,
    alpha: float = 1.5,
    discrepancy: float = 0.5,
    balance: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Schedule:
    """A layer is the content's while E_c >= (alpha t + 1 - discrepancy) E_s: EST-LoRA (arXiv 2508.02165).

    E is the squared Frobenius norm of the layer's update, and t the share of steps that are done. The formula follows
    SD.Next's implementation, except that its t reaches 1 in the last step. It was not compared with the paper.

    Parameters
    ----------
    discrepancy
        How far the style is from the base model's pictures. The paper measures it on probe images; here it is given.
    balance
        True multiplies every E_s by the ratio of the sums of E_c and E_s over the layers that both adapters have.

    Raises
    ------
    UserError
        An option is out of range, or the adapters were made for different base models.
    """
    require("alpha", alpha, lambda number: 0 < number < inf, "a number above 0")
    require("discrepancy", discrepancy, lambda number: -inf < number < inf, "a number")
    require("balance", balance, lambda choice: choice in (True, False), "True or False")
    shared = taking_turns(content, style)
    energies = dict(zip(shared, map_layers(_energies, shared.values()), strict=True))
    total_c, total_s = (sum(both[side] for both in energies.values()) for side in (0, 1))
    factor = total_c / total_s if balance and total_s else 1.0
    turns: dict[str, tuple[float, ...]] = {}
    for path, (of_c, of_s) in energies.items():
        ratio = of_c / (factor * of_s) if factor * of_s else inf
        turn = (ratio - (1 - discrepancy)) / alpha
        turns[path] = (max(turn, 0.0),) if turn <= 1 else ()
    return Schedule(content.to(dtype), style.to(dtype), turns)


def _energies(c: Factors, s: Factors) -> tuple[float, float]:
    return c.norm**2, s.norm**2
