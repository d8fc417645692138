"""An adapter: for each linear layer of the UNet that it touches, the two factors of the layer's update."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lorarar import formats


class Factors(NamedTuple):
    """A low-rank update dW = up @ down, alpha folded in."""

    down: Tensor  # (r, n_in)
    up: Tensor  # (m_out, r)

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def delta(self) -> Tensor:
        """dW (m_out, n_in) in float32, formed in full: for checks, not for merging."""
        return self.up.float() @ self.down.float()


@dataclass
class Adapter:
    """A LoRA of the UNet.

    Attributes
    ----------
    layers
        Module path inside the UNet, such as `down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`,
        -> its factors. Kept in the dtype they are stored in.
    metadata
        Free text that travels with the file.
    """

    layers: dict[str, Factors]
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | str) -> Adapter:
        """Read a safetensors file; raises `UserError` if it is missing, damaged or not a plain LoRA."""
        layers, metadata = formats.read(path)
        return cls({name: Factors(*factors) for name, factors in layers.items()}, metadata)

    def save(self, path: Path | str) -> None:
        """Write in diffusers' format, whole or not at all; equal adapters make equal bytes."""
        formats.write(path, self.layers, self.metadata)

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each layer."""
        return {path: factors.rank for path, factors in self.layers.items()}

    def to(self, dtype: torch.dtype) -> Adapter:
        """The same adapter with factors in `dtype`."""
        layers = {path: Factors(down.to(dtype), up.to(dtype)) for path, (down, up) in self.layers.items()}
        return Adapter(layers, dict(self.metadata))
