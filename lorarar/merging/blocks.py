"""Merges that take each layer from the adapter whose blocks it is in; every other layer is left out."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter
from lorarar.merging import columns
from lorarar.merging.options import require


def merge(
    content: Adapter,
    style: Adapter,
    *,
    content_blocks: tuple[str, ...] = ("up_blocks.0.attentions.0",),
    style_blocks: tuple[str, ...] = ("up_blocks.0.attentions.1",),
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """1[l in content_blocks] dW_c + 1[l in style_blocks] dW_s, exactly; of two whole adapters, as nothing is trained.

    Parameters
    ----------
    content_blocks, style_blocks
        Beginnings of module paths in the UNet. The defaults are SDXL's blocks of B-LoRA (arXiv 2403.14572).

    Raises
    ------
    UserError
        An option is no list of blocks, an adapter has no layer in its blocks, or the adapters were made for different
        base models.
    """
    require("content_blocks", content_blocks, _fits, "paths, as in ('mid_block', 'up_blocks.0.attentions.0')")
    require("style_blocks", style_blocks, _fits, "paths, as in ('mid_block', 'up_blocks.0.attentions.0')")
    list(columns.aligned(content, style))  # shapes are checked in all layers, not only in those that stay
    kept = (_inside(content, content_blocks, "content"), _inside(style, style_blocks, "style"))
    return columns.merge(*kept, {}, dtype=dtype)


craft = partial(
    merge,
    content_blocks=("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0.attentions.0"),
    style_blocks=("up_blocks.0.attentions.1", "up_blocks.1", "up_blocks.2", "up_blocks.3"),
)
"""The blocks of CRAFT-LoRA (arXiv 2602.18936), which names wider sets of SDXL's blocks."""


def _inside(adapter: Adapter, blocks: tuple[str, ...], name: str) -> Adapter:
    """The adapter's layers in some blocks, and its text encoders."""

    def inside(name: str) -> bool:
        return any(f"{name.removeprefix('unet.')}.".startswith(f"{block}.") for block in blocks)

    layers = {path: factors for path, factors in adapter.layers.items() if inside(path)}
    if not layers:
        raise UserError(f"{name}_blocks {', '.join(blocks)}: the {name} adapter has no layer there; name other blocks")
    others = {n: factors for n, factors in adapter.others.items() if not n.startswith("unet.") or inside(n)}
    return Adapter(layers, others=others)


def _fits(blocks: Any) -> bool:
    return isinstance(blocks, list | tuple) and bool(blocks) and all(isinstance(block, str) for block in blocks)
