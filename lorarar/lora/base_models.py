"""Tells from the names and shapes of an adapter's layers which base model it was made for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from lorarar.errors import UserError
from lorarar.lora.factors import Layers


class Base(NamedTuple):
    """The attention layers of a UNet; levels are counted from the outermost block."""

    name: str
    widths: tuple[int, ...]
    depths: tuple[int, ...]  # transformer blocks in each attention of a level
    middle: int  # the same in the middle block
    attentions: int  # of each down block; an up block has one more
    text: int  # width of the text embedding

    def has(self, place: re.Match[str], shape: tuple[int, int]) -> bool:
        """Whether this base has a layer there, `place` being a match of `_LAYER`, of shape (m_out, n_in)."""
        if place["side"] == "mid":
            level, depth, attentions = -1, self.middle, 1
        else:
            level = int(place["level"])
            if level >= len(self.widths):
                return False
            down = place["side"] == "down"
            level, attentions = (level, self.attentions) if down else (-1 - level, self.attentions + 1)
            depth = self.depths[level]
        width = self.widths[level]
        shapes = {
            "attn2.to_k": (width, self.text),
            "attn2.to_v": (width, self.text),
            "ff.net.0.proj": (8 * width, width),
            "ff.net.2": (width, 4 * width),
        }
        return (
            int(place["attention"]) < attentions
            and int(place["block"] or 0) < depth
            and shape == shapes.get(place["end"], (width, width))
        )


BASES = (
    Base("SDXL", (320, 640, 1280), (0, 2, 10), 10, 2, 2048),
    # KOALA-1B; KOALA-700m is a part of it.
    Base("KOALA", (320, 640, 1280), (0, 2, 6), 6, 1, 2048),
    Base("Stable Diffusion 1.5", (320, 640, 1280, 1280), (1, 1, 1, 0), 1, 2, 768),
    Base("Stable Diffusion 2", (320, 640, 1280, 1280), (1, 1, 1, 0), 1, 2, 1024),
    Base("pocket", (96, 192), (1, 1), 1, 1, 128),
    Base("pocket_light", (96, 192), (1, 1), 0, 1, 128),  # a part of pocket
)

_LAYER = re.compile(
    r"(?P<side>down|mid|up)_block(?:s\.(?P<level>\d+))?\.attentions\.(?P<attention>\d+)\."
    r"(?:transformer_blocks\.(?P<block>\d+)\.)?(?P<end>.+)"
)


def guess(layers: Layers) -> str:
    """The base models whose UNet has all these layers, such as "SDXL or KOALA".

    Parameters
    ----------
    layers
        As in `Adapter.layers`.

    Returns
    -------
    str
        "unknown (widths 32, 64)" if no base has them or none is part of an attention.
    """
    if names := possible(layers):
        return " or ".join(names)
    if not layers:
        return "unknown (no linear layer of a UNet)"
    return f"unknown (widths {', '.join(map(str, sorted({down.shape[1] for down, _ in layers.values()})))})"


def possible(layers: Layers) -> list[str]:
    """Names of the bases that have every layer which is part of an attention; none if that is no base or every one."""
    names = _possible(layers)
    return [base.name for base in BASES if base.name in names] if len(names) < len(BASES) else []


def same(content: Layers, style: Layers, *, names: Sequence[str] = ("the first", "the second")) -> None:
    """Raise `UserError`, calling the adapters `names`, if no base model can have the layers of both."""
    ours, theirs = _possible(content), _possible(style)
    if ours != theirs and not ours & theirs:
        bases = (guess(content), guess(style))
        raise UserError(f"{names[0]} is for {bases[0]}, {names[1]} for {bases[1]}: merge adapters of one base model")


def _possible(layers: Layers) -> set[str]:
    """Names of the bases that have every layer which is part of an attention; all of them if there is none."""
    places = [
        (place, (up.shape[0], down.shape[1]))
        for path, (down, up) in layers.items()
        if (place := _LAYER.fullmatch(path))
    ]
    return {base.name for base in BASES if all(base.has(place, shape) for place, shape in places)}
