"""An adapter: for each layer that it touches, the two factors of the layer's update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lorarar.errors import UserError
from lorarar.lora import formats
from lorarar.lora.factors import finite


class Factors(NamedTuple):
    """A low-rank update dW = up @ down, alpha folded in."""

    down: Tensor  # (r, n_in), of a convolution (r, c_in, h, w)
    up: Tensor  # (m_out, r), of a convolution (c_out, r, 1, 1)

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def delta(self) -> Tensor:
        """dW (m_out, n_in) or (c_out, c_in, h, w) in float32, formed in full: for checks, not for merging."""
        return (self.up.float().flatten(1) @ self.down.float().flatten(1)).unflatten(1, self.down.shape[1:])

    @property
    def norm(self) -> float:
        """Frobenius norm of dW, without forming it: |dW|^2 = tr(up^T up down down^T)."""
        down, up = self.down.double().flatten(1), self.up.double().flatten(1)
        return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt())


@dataclass
class Adapter:
    """A LoRA of the UNet.

    Attributes
    ----------
    layers
        Module path inside the UNet, such as `down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`,
        -> its factors: the linear layers. Kept in the dtype they are stored in.
    metadata
        Free text that travels with the file.
    unmerged
        Layers that no method merges: convolutions of the UNet under `unet.<path>` and layers of the text encoders
        under `text_encoder.<path>` and `text_encoder_2.<path>`.
    format
        The format of the file it was read from, "" if it was made in memory.
    compute
        Only for lazy merges: a function that computes the factors of `unet.<path>` while saving. Until then `layers`
        holds meta tensors, which have only dtype and shape.
    """

    layers: dict[str, Factors]
    metadata: dict[str, str] = field(default_factory=dict)
    unmerged: dict[str, Factors] = field(default_factory=dict)
    format: str = ""
    compute: Callable[[str], Factors] | None = None

    @classmethod
    def load(cls, path: Path | str) -> Adapter:
        """Read a safetensors file in diffusers', peft's or kohya's format.

        Factors are views of the memory-mapped file, except those that a file's alpha changes.

        Raises
        ------
        UserError
            The file is missing, damaged or not a plain LoRA.
        """
        found, metadata, format = formats.read(path)
        layers, unmerged = {}, {}
        for name, pair in found.items():
            factors = Factors(*pair)
            if name.startswith("unet.") and factors.down.ndim == 2:
                layers[name.removeprefix("unet.")] = factors
            else:
                unmerged[name] = factors
        return cls(layers, metadata, unmerged, format)

    def save(self, path: Path | str, format: str = "diffusers", dtype: torch.dtype | None = None) -> None:
        """Write a safetensors file, whole or not at all; equal adapters make equal bytes.

        Parameters
        ----------
        format
            "diffusers", "kohya", "kohya-sgm" (SDXL's original block names) or "peft", which also writes
            `adapter_config.json` to the same folder.
        dtype
            That of the file; None keeps the factors' own.

        Raises
        ------
        UserError
            The format is unknown or has no name for a layer, or a factor holds NaN or infinity.
        """
        adapter = self if dtype is None else self.to(dtype)
        formats.write(path, adapter._all, adapter.metadata, format, adapter.compute)

    def check(self, source: str) -> None:
        """Raise `UserError` if a factor holds NaN or infinity; `source` names the adapter. Reads every value."""
        for name, factors in self._all.items():
            if not all(finite(factor) for factor in factors):
                raise UserError(f"{source}: layer {name} holds NaN or infinity; train it again or take another file")

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each layer."""
        return {path: factors.rank for path, factors in self.layers.items()}

    def to(self, target: torch.dtype | torch.device) -> Adapter:
        """The same adapter with factors in a dtype or on a device."""
        return replace(
            self,
            layers={path: Factors(down.to(target), up.to(target)) for path, (down, up) in self.layers.items()},
            metadata=dict(self.metadata),
            unmerged={name: Factors(down.to(target), up.to(target)) for name, (down, up) in self.unmerged.items()},
        )

    @property
    def _all(self) -> dict[str, Factors]:
        return {f"unet.{path}": factors for path, factors in self.layers.items()} | self.unmerged
