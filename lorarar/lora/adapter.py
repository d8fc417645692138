"""An adapter: for each layer that it touches, the two factors of the layer's update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from lorarar.errors import UserError
from lorarar.lora import formats
from lorarar.lora.factors import Factors, finite
from lorarar.lora.lazy import Lazy, blanks, computed

__all__ = ["Adapter", "Factors"]


@dataclass
class Adapter:
    """A LoRA of the UNet.

    Attributes
    ----------
    layers
        Module path inside the UNet, such as `down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`,
        -> its factors: the linear layers. Kept in the dtype they are stored in. A merge gives a `Lazy` mapping,
        which computes a layer each time it is asked for it: see `computed`.
    metadata
        Free text that travels with the file.
    unmerged
        The layers that merging does not touch: convolutions of the UNet under `unet.<path>` and layers of the text
        encoders under `text_encoder.<path>` and `text_encoder_2.<path>`.
    format
        The format of the file it was read from, "" if it was made in memory.
    """

    layers: Mapping[str, Factors]
    metadata: dict[str, str] = field(default_factory=dict)
    unmerged: Mapping[str, Factors] = field(default_factory=dict)
    format: str = ""

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
        for name, factors in found.items():
            if name.startswith("unet.") and factors.down.ndim == 2:
                layers[name.removeprefix("unet.")] = factors
            else:
                unmerged[name] = factors
        return cls(layers, metadata, unmerged, format)

    def save(self, path: Path | str, format: str = "diffusers", dtype: torch.dtype | None = None) -> None:
        """Write a safetensors file, whole or not at all; equal adapters make equal bytes.

        Lazy layers are computed one after the other, and none is kept.

        Parameters
        ----------
        format
            "diffusers", "kohya", "kohya-sgm" (SDXL's original block names) or "peft", which also writes
            `adapter_config.json` into the same folder.
        dtype
            The dtype of the file; None keeps that of the factors.

        Raises
        ------
        UserError
            The format is unknown or has no name for a layer, or a factor holds NaN or infinity.
        """
        formats.write(path, self._all(dtype), self.metadata, format)

    def computed(self) -> Adapter:
        """The same adapter with all layers in memory, for those who need them more than once."""
        return replace(self, layers=computed(self.layers), unmerged=computed(self.unmerged))

    def check(self, source: str) -> None:
        """Raise `UserError` if a factor holds NaN or infinity; `source` names the adapter. Reads every value."""
        for name, factors in self._all().items():
            if not all(finite(factor) for factor in factors):
                raise UserError(f"{source}: layer {name} holds NaN or infinity; train it again or take another file")

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each layer."""
        return {path: factors.rank for path, factors in blanks(self.layers).items()}

    def to(self, target: torch.dtype | torch.device) -> Adapter:
        """The same adapter with factors in a dtype or on a device, in memory."""
        layers, unmerged = (
            {path: factors.to(target) for path, factors in computed(part).items()}
            for part in (self.layers, self.unmerged)
        )
        return replace(self, layers=layers, metadata=dict(self.metadata), unmerged=unmerged)

    def _all(self, dtype: torch.dtype | None = None) -> Lazy[Factors]:
        """Every layer by its component and path, cast when it is asked for."""
        places = {f"unet.{path}": (self.layers, path) for path in self.layers}
        places |= {name: (self.unmerged, name) for name in self.unmerged}

        def cast(factors: Factors) -> Factors:
            return factors.to(dtype) if dtype else factors

        def compute(name: str) -> Factors:
            layers, path = places[name]
            return cast(layers[path])

        return Lazy({name: cast(blanks(of)[path].to("meta")) for name, (of, path) in places.items()}, compute)
