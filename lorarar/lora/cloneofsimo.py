"""Files of cloneofsimo's lora, the first LoRA trainer for Stable Diffusion: factors by number, without names.

A `.pt` file is a list up, down, up, down, ..., of one model; a safetensors file has the keys `unet:<number>:up` and
`text_encoder:<number>:down`. Numbers follow the order of the modules in diffusers: of the UNet the down blocks, the up
blocks and the middle block, and in each transformer block attn1, then attn2 and the feed-forward layer in either order,
which shapes tell; of CLIP the layers, and in each k, v, q and out. (cloneofsimo/lora, lora_diffusion/lora.py)
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lorarar.errors import UserError
from lorarar.lora.base_models import BASES, Base

if TYPE_CHECKING:
    from torch import Tensor

_KEY = re.compile(r"(?:(?P<component>unet|text_encoder):)?(?P<number>\d+)(?::(?P<part>up|down))?")
_CLIP = {768: 12, 1024: 23}  # width -> layers of the text encoders of Stable Diffusion 1 and 2


def known(tensors: Mapping[str, Tensor]) -> bool:
    """True if every key is a number, as in these files."""
    return bool(tensors) and all(map(_KEY.fullmatch, tensors))


def translate(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Tensors under diffusers' keys.

    Raises
    ------
    UserError
        The shapes are not those of the layers of Stable Diffusion 1.5 or 2.
    """
    found: dict[str, dict[int, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        assert match, key
        number, part = int(match["number"]), match["part"]
        if part is None:  # of a list
            number, part = number // 2, "down" if number % 2 else "up"
        found[match["component"] or ""][number][part] = tensor
    named: dict[str, Tensor] = {}
    for component, numbered in found.items():
        pairs = [numbered[number] for number in sorted(numbered)]
        if sorted(numbered) != list(range(len(pairs))) or any(set(pair) != {"up", "down"} for pair in pairs):
            raise UserError(f"{source}: its list of factors has gaps; the file is incomplete, fetch or make it again")
        shapes = [(pair["up"].shape[0], pair["down"].shape[1]) for pair in pairs]
        for name, pair in zip(_names(component, shapes, source), pairs, strict=True):
            end = "lora" if name.startswith("unet.") else "lora_linear_layer"
            named |= {f"{name}.{end}.{part}.weight": tensor for part, tensor in pair.items()}
    return named


def _names(component: str, shapes: list[tuple[int, int]], source: str) -> list[str]:
    """Layers in the order of the modules, by the one model that has layers of these shapes."""
    models = [("unet", _unet(base, order)) for base in BASES for order in ("attn2 ff", "ff attn2")]
    models += [("unet", _unet(base, "attn2")) for base in BASES]
    models += [("text_encoder", _clip(width)) for width in _CLIP]
    for name, layers in models:
        listed = list(layers)
        if component in ("", name) and [shape for _, shape in listed] == shapes:
            return [f"{name}.{path}" for path, _ in listed]
    raise UserError(f"{source}: its {len(shapes)} factors have no names, and the shapes of no base known here")


def _unet(base: Base, order: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Paths and shapes (m_out, n_in) of the attention layers, and of the feed-forward layers if `order` has them."""
    levels = len(base.widths)
    down = [(f"down_blocks.{i}", i, base.attentions) for i in range(levels)]
    up = [(f"up_blocks.{i}", levels - 1 - i, base.attentions + 1) for i in range(levels)]
    for block, level, attentions in [*down, *up, ("mid_block", levels - 1, 1)]:
        depth, width = base.middle if block == "mid_block" else base.depths[level], base.widths[level]
        for attention in range(attentions):
            for number in range(depth):
                stem = f"{block}.attentions.{attention}.transformer_blocks.{number}"
                for part in ("attn1", *order.split()):
                    if part == "ff":
                        yield f"{stem}.ff.net.0.proj", (8 * width, width)
                        continue
                    inner = base.text if part == "attn2" else width
                    for end, size in (("to_q", width), ("to_k", inner), ("to_v", inner), ("to_out.0", width)):
                        yield f"{stem}.{part}.{end}", (width, size)


def _clip(width: int) -> Iterator[tuple[str, tuple[int, int]]]:
    for layer in range(_CLIP[width]):
        for end in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield f"text_model.encoder.layers.{layer}.self_attn.{end}", (width, width)
