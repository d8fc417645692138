"""The contents of a LoRA file, as `lorarar inspect` shows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

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
    format : a name of `lorarar.lora.formats.WRITERS`.
    base : names of the base models that have these layers, such as "SDXL or KOALA".
    layers : the UNet's linear layers by path.
    others : names of convolutions and of text encoders' layers.
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
    return Contents(
        adapter.format,
        base_models.guess(adapter.layers),
        {
            path: Layer((len(factors.up), factors.down.shape[1]), factors.rank, factors.norm)
            for path, factors in adapter.layers.items()
        },
        sorted(adapter.others),
        sorted({str(factors.down.dtype).removeprefix("torch.") for factors in adapter.layers.values()}),
        dict(sorted(adapter.metadata.items())),
    )
