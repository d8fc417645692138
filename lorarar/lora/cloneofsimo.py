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
from lorarar.lora.bases import bases

if TYPE_CHECKING:
    from torch import Tensor

_KEY = re.compile(r"(?:(?P<component>unet|text_encoder):)?(?P<number>\d+)(?::(?P<part>up|down))?")
_LAYER = re.compile(
    r"(?P<block>down_blocks|up_blocks|mid_block)(?:\.(?P<level>\d+))?\.attentions\.(?P<attention>\d+)"
    r"\.transformer_blocks\.(?P<number>\d+)\.(?P<part>attn1|attn2|ff)\.(?P<end>.+)"
)
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
    unets = [base.layers for base in bases() if base.component == "unet"]
    models = [("unet", _unet(layers, order)) for layers in unets for order in ("attn2 ff", "ff attn2", "attn2")]
    models += [("text_encoder", _clip(width)) for width in _CLIP]
    for name, layers in models:
        listed = list(layers)
        if component in ("", name) and [shape for _, shape in listed] == shapes:
            return [f"{name}.{path}" for path, _ in listed]
    raise UserError(f"{source}: its {len(shapes)} factors have no names, and the shapes of no base known here")


def _unet(layers: Mapping[str, tuple[int, int]], order: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Paths and shapes (m_out, n_in) of the attention layers, and of the feed-forward layers if `order` has them."""
    blocks = ["down_blocks", "up_blocks", "mid_block"]
    parts = ["attn1", *order.split()]
    ends = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj"]
    found = []
    for path, shape in layers.items():
        match = _LAYER.fullmatch(path)
        if match and match["part"] in parts and match["end"] in ends:
            places = [int(match[name] or 0) for name in ("level", "attention", "number")]
            key = (blocks.index(match["block"]), *places, parts.index(match["part"]), ends.index(match["end"]))
            found.append((key, path, shape))
    for _, path, shape in sorted(found):
        yield path, shape


def _clip(width: int) -> Iterator[tuple[str, tuple[int, int]]]:
    for layer in range(_CLIP[width]):
        for end in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield f"text_model.encoder.layers.{layer}.self_attn.{end}", (width, width)
