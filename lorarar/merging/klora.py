"""K-LoRA (arXiv 2502.18461): in each denoising step each layer is the content's or the style's, never a mixture."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from lorarar.errors import UserError
from lorarar.lora import container
from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.lazy import computed
from lorarar.merging import columns
from lorarar.merging.options import require
from lorarar.parallel import map_layers

Variant = Literal["s", "s*"]
# Progress and turns are rounded differently: a step that falls on a turn is past it.
ROUNDING = 1e-9


@dataclass
class Schedule:
    """Two adapters or more, and for each layer which of them it comes from at which time.

    Attributes
    ----------
    turns
        Layer that several have -> the progress of denoising, in [0, 1], at which it changes to the next adapter that
        has it, after the last to the first. It starts as the first's; progress is the share of steps that are done.
    metadata
        Free text that travels with the file.
    more
        Adapters after the content and the style.
    """

    content: Adapter
    style: Adapter
    turns: dict[str, tuple[float, ...]]
    metadata: dict[str, str] = field(default_factory=dict)
    more: tuple[Adapter, ...] = ()

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """All adapters, in the order of their turns."""
        return self.content, self.style, *self.more

    def at(self, progress: float) -> Adapter:
        """The adapter for the step before which the share `progress`, in [0, 1), of all steps was done."""
        layers = {path: factors for adapter in reversed(self.adapters) for path, factors in adapter.layers.items()}
        for path, turns in self.turns.items():
            takers = owners(path, self.adapters)
            layers[path] = takers[sum(turn <= progress + ROUNDING for turn in turns) % len(takers)].layers[path]
        return Adapter(layers, others=self._others)

    def save(self, path: Path | str) -> None:
        """Write the adapters and the turns to one safetensors file, whole or not at all."""
        tensors = {
            f"{name}.{part}.{layer}.{side}": tensor
            for name, adapter in zip(_names(len(self.adapters)), self.adapters, strict=True)
            for part, table in (("layers", adapter.layers), ("rest", adapter.others))
            for layer, factors in table.items()
            for side, tensor in zip(Factors._fields, factors, strict=True)
        }
        container.write_tensors(path, tensors, self.metadata | {"schedule": json.dumps(self.turns, sort_keys=True)})

    @classmethod
    def load(cls, path: Path | str) -> Schedule:
        """Read what `save` wrote; raises `UserError` if the file is missing, damaged or of another kind."""
        tensors, metadata = container.read_tensors(path)
        found: dict[tuple[str, str], dict[str, Factors]] = defaultdict(dict)
        try:
            turns = {layer: tuple(listed) for layer, listed in json.loads(metadata.pop("schedule")).items()}
            for stem in [key.removesuffix(".down") for key in tensors if key.endswith(".down")]:
                name, part, layer = stem.split(".", 2)
                found[name, part][layer] = Factors(tensors[f"{stem}.down"], tensors[f"{stem}.up"])
        except (KeyError, ValueError):
            raise UserError(
                f"{path}: not a schedule of adapters; give a file that a method with a schedule made"
            ) from None
        names = _names(max(2, len({name for name, _ in found})))
        content, style, *more = (Adapter(found[name, "layers"], others=found[name, "rest"]) for name in names)
        return cls(content, style, turns, metadata, tuple(more))

    @cached_property
    def _others(self) -> Mapping[str, Factors]:
        """Convolutions and text encoders do not take turns: all updates are added."""
        parts = [replace(adapter, layers={}) for adapter in self.adapters]
        return computed(columns.weighted(*parts, weights=[1.0] * len(parts)).others)


def owners(path: str, adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters that change a linear layer of the UNet: those that have it, and not with rank 0."""
    return [adapter for adapter in adapters if path in adapter.layers and adapter.layers[path].rank]


def _names(count: int) -> list[str]:
    """Names of a schedule's adapters in its file."""
    return ["content", "style", *map(str, range(3, count + 1))]


@torch.no_grad()
def merge(
    content: Adapter,
    style: Adapter,
    *,
    alpha: float = 1.5,
    beta: float | None = None,
    variant: Variant = "s",
    dtype: torch.dtype = torch.float32,
) -> Schedule:
    """The schedule of K-LoRA: a layer is the content's while S_c / gamma > S_s scale(t).

    S_c and S_s are the sums of the r_c r_s largest magnitudes in the layer's dW_c and dW_s, gamma is the ratio of
    the sums of all magnitudes over all layers that both adapters have, and scale(t) = alpha t / T + beta after t of
    T steps. None of these sums depends on the step, so each is taken once.

    Parameters
    ----------
    beta
        None is 0.5, or 0.85 alpha in the variant "s*".
    variant
        "s*" takes scale(t) modulo alpha, which begins with the style and ends with more of it.

    Raises
    ------
    UserError
        An option is out of range, or the adapters were made for different base models.
    """
    require("alpha", alpha, lambda number: 0 < number < inf, "a number above 0")
    require("beta", beta, lambda number: number is None or isfinite(number), "a number")
    require("variant", variant, lambda name: name in get_args(Variant), " or ".join(get_args(Variant)))
    if beta is None:
        beta = 0.85 * alpha if variant == "s*" else 0.5
    shared = taking_turns(content, style)
    found = map_layers(_sums, [(c, s, c.rank * s.rank) for c, s in shared.values()])
    sums = dict(zip(shared, found, strict=True))
    total_c, total_s = (sum(both[side].total for both in sums.values()) for side in (0, 1))
    turns = {}
    for path, (of_c, of_s) in sums.items():
        # Where the right-hand side is 0, the content wins with whatever it has.
        won, against = of_c.largest * total_s, of_s.largest * total_c
        ratio = won / against if against else inf if of_c.largest else 0.0
        turns[path] = _turns(ratio / alpha, beta / alpha, variant)
    return Schedule(content.to(dtype), style.to(dtype), turns)


@torch.no_grad()
def released(
    content: Adapter,
    style: Adapter,
    *,
    alpha: float = 1.5,
    beta: float = 0.5,
    largest: int = 64,
    steps: int = 50,
    dtype: torch.dtype = torch.float32,
) -> Schedule:
    """The schedule that the authors' program follows, which differs from the paper's in three ways.

    S_c and S_s are the sums of the `largest` magnitudes, whatever the ranks are. gamma is the mean over all layers of
    the ratio of the sums of magnitudes. Time is a count of the layers that have run: layer j of L is, in step s of T,
    at the time (s L + j) mod (T L) of T L, so that scale grows within a step, and the very last layer is at the
    beginning. (HVision-NKU/K-LoRA, klora.py and utils.py, read at commit acb6452.)

    Parameters
    ----------
    largest
        How many magnitudes of each update are summed.
    steps
        T, the number of denoising steps that the schedule is for; the program has 50, and 560 layers.

    Raises
    ------
    UserError
        An option is out of range, or the adapters were made for different base models.
    """
    require("alpha", alpha, lambda number: 0 < number < inf, "a number above 0")
    require("beta", beta, lambda number: 0 <= number < inf, "0 or more")
    require("largest", largest, lambda count: isinstance(count, int) and count >= 1, "a whole number from 1")
    require("steps", steps, lambda count: isinstance(count, int) and count >= 1, "a whole number from 1")
    shared = taking_turns(content, style)
    found = map_layers(_sums, [(c, s, largest) for c, s in shared.values()])
    sums = dict(zip(shared, found, strict=True))
    gamma = sum(c.total / s.total if s.total else inf for c, s in found) / max(len(found), 1)
    turns: dict[str, tuple[float, ...]] = {}
    end = steps * len(sums)
    for place, path in enumerate(sorted(sums, key=_order), 1):
        of_c, of_s = sums[path]
        times = [(step * len(sums) + place) % end for step in range(steps)]
        won = [of_c.largest > of_s.largest * gamma * (alpha * time / end + beta) for time in times]
        before = [True, *won]
        turns[path] = tuple(step / steps for step, now in enumerate(won) if now != before[step])
    return Schedule(content.to(dtype), style.to(dtype), turns)


def _order(path: str) -> tuple[Any, ...]:
    """Where a layer comes in a pass through the UNet: down, middle, up; in an attention, query, key, value, output."""
    known = ("down_blocks", "mid_block", "up_blocks", "to_q", "to_k", "to_v", "to_out")
    return tuple(
        (0, int(part), "") if part.isdigit() else (1, known.index(part) if part in known else len(known), part)
        for part in path.split(".")
    )


def taking_turns(content: Adapter, style: Adapter) -> dict[str, tuple[Factors, Factors]]:
    """The linear layers of the UNet that both adapters have: only these change with the denoising step."""
    linear = content.layers.keys() & style.layers.keys()
    return {path: (c, s) for path, c, s in columns.aligned(content, style) if path in linear and c.rank and s.rank}


class _Sums(NamedTuple):
    largest: float  # of the largest magnitudes of dW
    total: float  # of all


def _sums(c: Factors, s: Factors, largest: int) -> list[_Sums]:
    """Sums the `largest` greatest magnitudes of each update, and all of them."""
    found = []
    for factors in (c, s):
        magnitudes = factors.delta.abs_().flatten()
        k = min(largest, len(magnitudes))
        found.append(_Sums(float(magnitudes.topk(k, sorted=False).values.sum()), float(magnitudes.sum())))
    return found


def _turns(ratio: float, offset: float, variant: Variant) -> tuple[float, ...]:
    """Where ratio crosses progress + offset, or that modulo 1 in the variant "s*"; both divided by alpha."""
    if variant == "s":
        turns = [ratio - offset]
    else:
        offset, ratio = offset % 1, min(ratio, 1.0)
        turns = [ratio - offset, 1 - offset, 1 - offset + ratio]
    return tuple(max(turn, 0.0) for turn in turns if turn <= 1)
