"""An adapter: for each layer that it touches, the two factors of the layer's update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
    others
        Convolutions of the UNet under `unet.<path>`, and layers of the text encoders under `text_encoder.<path>` and
        `text_encoder_2.<path>`. Merges treat them as they treat `layers`: see `matrices`.
    format
        The format of the file it was read from, "" if it was made in memory.
    """

    layers: Mapping[str, Factors]
    metadata: dict[str, str] = field(default_factory=dict)
    others: Mapping[str, Factors] = field(default_factory=dict)
    format: str = ""

    @classmethod
    def load(cls, path: Path | str) -> Adapter:
        """Read a LoRA in any of the formats: a file, a folder of diffusers or peft, or a name in the hub's local cache.

        Factors are views of the memory-mapped file, except those that a file's alpha changes.

        Raises
        ------
        UserError
            The file is missing, damaged or not a plain LoRA.
        """
        found, metadata, format = formats.read(formats.locate(path))
        layers, others = {}, {}
        for name, factors in found.items():
            if name.startswith("unet.") and factors.down.ndim == 2:
                layers[name.removeprefix("unet.")] = factors
            else:
                others[name] = factors
        return cls(layers, metadata, others, format)

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

    @property
    def matrices(self) -> Mapping[str, Factors]:
        """Every layer as a matrix, its factors (r, n_in) and (m_out, r): a convolution has n_in = c_in h w.

        Names are paths in the UNet, and `text_encoder.<path>` or `text_encoder_2.<path>`.
        """
        if not self.others:
            return self.layers
        return {**self.layers, **{_matrix_name(name): factors.matrix for name, factors in self.others.items()}}

    @classmethod
    def from_matrices(cls, matrices: Mapping[str, Factors], *like: Adapter, **fields: Any) -> Adapter:
        """The adapter of `matrices`, each in the shape that the layer has in the first of `like` which has it.

        Lazy layers stay lazy.
        """
        kernels: dict[str, torch.Size] = {}  # of convolutions
        others: dict[str, str] = {}  # names in `others` of the layers that belong there
        for adapter in reversed(like):
            for name, factors in blanks(adapter.others).items():
                kernels[_matrix_name(name)], others[_matrix_name(name)] = factors.down.shape[1:], name
            for path in adapter.layers:
                kernels.pop(path, None)
                others.pop(path, None)

        def shaped(name: str, factors: Factors) -> Factors:
            kernel = kernels.get(name, ())
            return factors.convolution(kernel) if len(kernel) > 1 else factors

        def part(names: Mapping[str, str]) -> Mapping[str, Factors]:
            """Layers by the name that they get -> from the matrices by their name there."""
            found = {name: shaped(known, blanks(matrices)[known]) for name, known in names.items()}
            if not isinstance(matrices, Lazy):
                return found
            return Lazy(found, lambda name: shaped(names[name], matrices[names[name]]))

        return cls(
            part({name: name for name in matrices if name not in others}),
            others=part({others[name]: name for name in matrices if name in others}),
            **fields,
        )

    def computed(self) -> Adapter:
        """The same adapter with all layers in memory, for those who need them more than once."""
        return replace(self, layers=computed(self.layers), others=computed(self.others))

    def scaled(self, factor: Callable[[str], float]) -> Adapter:
        """The same adapter in memory, each update times the factor of its name, `<component>.<path>`; none times 0."""
        names = iter(self._all())

        def part(layers: Mapping[str, Factors]) -> dict[str, Factors]:
            found = {}
            for path, (down, up) in computed(layers).items():
                if scale := factor(next(names)):
                    found[path] = Factors(down, up if scale == 1 else up.float() * scale)
            return found

        return replace(self, layers=part(self.layers), others=part(self.others))

    def check(self, source: str) -> None:
        """Raise `UserError` if a factor holds NaN or infinity; `source` names the adapter. Reads every value."""
        for name, factors in self._all().items():
            if not all(finite(factor) for factor in factors):
                raise UserError(f"{source}: layer {name} holds NaN or infinity; train it again or take another file")

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each layer."""
        return {path: factors.rank for path, factors in blanks(self.layers).items()}

    @property
    def all_ranks(self) -> set[int]:
        """The different ranks of all layers."""
        return {factors.rank for part in (self.layers, self.others) for factors in blanks(part).values()}

    def to(self, target: torch.dtype | torch.device) -> Adapter:
        """The same adapter with factors in a dtype or on a device, in memory."""
        layers, others = (
            {path: factors.to(target) for path, factors in computed(part).items()}
            for part in (self.layers, self.others)
        )
        return replace(self, layers=layers, metadata=dict(self.metadata), others=others)

    def _all(self, dtype: torch.dtype | None = None) -> Lazy[Factors]:
        """Every layer by its component and path, cast when it is asked for."""
        places = {f"unet.{path}": (self.layers, path) for path in self.layers}
        places |= {name: (self.others, name) for name in self.others}

        def cast(factors: Factors) -> Factors:
            return factors.to(dtype) if dtype else factors

        def compute(name: str) -> Factors:
            layers, path = places[name]
            return cast(layers[path])

        return Lazy({name: cast(blanks(of)[path].to("meta")) for name, (of, path) in places.items()}, compute)


def _matrix_name(name: str) -> str:
    """A layer's name in `matrices`: the UNet's linear layers and convolutions are told apart by their paths only."""
    return name.removeprefix("unet.")
