"""The contents of a LoRA file, as `lorarar inspect` shows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from lorarar import describe
from lorarar.lora import base_models
from lorarar.lora.adapter import Adapter


@dataclass(frozen=True)
class Layer:
    """Shape (m_out, n_in), rank and Frobenius norm of one layer's update."""

    shape: tuple[int, int]
    rank: int
    norm: float


@dataclass(frozen=True)
class Contents:
    """A LoRA file in figures.

    Attributes
    ----------
    format : one of `lorarar.lora.formats.FORMATS`.
    base : the base that the metadata names, or the base models that have these layers, such as "SDXL or KOALA".
    layers : linear layers of the UNet or transformer by path.
    others : names of convolutions and of text encoders' layers.
    component : "unet" or "transformer", the model that the layers are of.
    dtypes : those of the factors.
    metadata : free text of the file.
    """

    format: str
    base: str
    layers: dict[str, Layer]
    others: list[str]
    dtypes: list[str]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def component(self) -> str:
        return base_models.component(next(iter(self.layers), ""))

    @property
    def ranks(self) -> list[int]:
        """Different ranks of the layers, in order."""
        return sorted({layer.rank for layer in self.layers.values()})

    @property
    def norm(self) -> float:
        """Frobenius norm of all updates together."""
        return float(sum(layer.norm**2 for layer in self.layers.values())) ** 0.5


def inspect(file: Path | str) -> Contents:
    """Read a LoRA file and describe it.

    Raises
    ------
    UserError : the file is missing, damaged, not a LoRA, or holds NaN.
    """
    adapter = Adapter.load(file)
    adapter.check(str(file))
    return contents(adapter)


def contents(adapter: Adapter) -> Contents:
    """An adapter in figures."""
    return Contents(
        adapter.format,
        describe.claimed(adapter.metadata) or base_models.guess(adapter.layers),
        {
            path: Layer((len(factors.up), factors.down.shape[1]), factors.rank, factors.norm)
            for path, factors in adapter.layers.items()
        },
        sorted(adapter.others),
        sorted({str(factors.down.dtype).removeprefix("torch.") for factors in adapter.layers.values()}),
        dict(sorted(adapter.metadata.items())),
    )


@dataclass(frozen=True)
class Comparison:
    """Two LoRAs before they are merged, over the layers that both have.

    Attributes
    ----------
    shared, only_first, only_second : numbers of layers.
    norm_ratio : the first's norm over the second's.
    overlap : mean share of the smaller row space that lies in the larger, 0 to 1.
    by_chance : the mean that independent random row spaces of these ranks would have.
    cosine : of the two updates, all shared layers as one vector.
    """

    shared: int
    only_first: int
    only_second: int
    norm_ratio: float
    overlap: float
    by_chance: float
    cosine: float

    @property
    def warnings(self) -> list[str]:
        """Reasons for which a merge is likely to disappoint."""
        found = []
        if 10 * self.shared < min(self.shared + self.only_first, self.shared + self.only_second):
            found.append("the files share hardly any layer: they may be for different bases")
        if not 1 / 3 <= self.norm_ratio <= 3:
            loud = "first" if self.norm_ratio > 1 else "second"
            found.append(f"the {loud} is much stronger: it may drown the other; lower its weight")
        if self.overlap > max(0.3, 3 * self.by_chance):
            found.append("both read the same directions of their inputs, as LoRAs from a common random start do")
        if self.cosine < -0.1:
            found.append("the updates oppose each other: parts of both will cancel")
        return found


def compare(first: Adapter, second: Adapter) -> Comparison:
    """Compares two adapters: layers, norms, row spaces and directions.

    Row spaces overlap by |Q_1 Q_2^T|^2 / min(r_1, r_2), Q with orthonormal rows that span those of down.
    """
    ours, theirs = first.matrices, second.matrices
    shared = sorted(ours.keys() & theirs.keys())
    inner = square_1 = square_2 = overlap = chance = 0.0
    for name in shared:
        (down_1, up_1), (down_2, up_2) = (factors.to(torch.float64) for factors in (ours[name], theirs[name]))
        inner += float(((up_1.T @ up_2) * (down_1 @ down_2.T)).sum())
        square_1, square_2 = square_1 + ours[name].norm ** 2, square_2 + theirs[name].norm ** 2
        q_1, q_2 = (torch.linalg.qr(down.T).Q for down in (down_1, down_2))
        overlap += float((q_1.T @ q_2).square().sum()) / min(len(down_1), len(down_2))
        chance += max(len(down_1), len(down_2)) / down_1.shape[1]
    number = max(len(shared), 1)
    return Comparison(
        len(shared),
        len(ours) - len(shared),
        len(theirs) - len(shared),
        (square_1 / square_2) ** 0.5 if square_2 else float("inf") if square_1 else 1.0,
        overlap / number,
        min(chance / number, 1.0),
        inner / (square_1 * square_2) ** 0.5 if square_1 and square_2 else 0.0,
    )
