"""kohya's LoRA keys: `lora_unet_<path with _ for .>.lora_down.weight`, `.lora_up.weight`, `.alpha`.

Text encoders are `lora_te1_` and `lora_te2_`, or `lora_te_` if there is only one. The blocks of the UNet have
diffusers' names or those of Stability's original code (SGM), `input_blocks_4_1` for `down_blocks_1_attentions_0`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from lorarar.errors import UserError
from lorarar.lora.factors import Factors, Layers, gather

if TYPE_CHECKING:
    from torch import Tensor

FOLDED = frozenset({"ss_network_alpha"})
PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")

_COMPONENTS = {"lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}
# text_encoder has two prefixes; the later one, lora_te1, is written.
_PREFIX = {component: prefix for prefix, component in _COMPONENTS.items()}
_KEY = re.compile(
    rf"(?P<component>{'|'.join(_COMPONENTS)})_(?P<name>.+)\.(?P<part>lora_down\.weight|lora_mid\.weight|lora_up\.weight|alpha)"
)
_PARTS = {"lora_down.weight": "down", "lora_mid.weight": "mid", "lora_up.weight": "up", "alpha": "alpha"}

# The layers that can have a LoRA, in UNet2DConditionModel and in CLIP's text encoders.
_RESNET = r"resnets\.\d+\.(?:conv1|conv2|conv_shortcut|time_emb_proj)"
_BLOCK = r"transformer_blocks\.\d+\.(?:attn[12]\.(?:to_[qkv]|to_out\.0)|ff\.net\.(?:0\.proj|2))"
_ATTENTION = rf"attentions\.\d+\.(?:proj_in|proj_out|{_BLOCK})"
_UNET = (
    rf"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(?:{_RESNET}|{_ATTENTION}|(?:down|up)samplers\.0\.conv)"
    r"|conv_in|conv_out|(?:time|add)_embedding\.linear_[12]"
)
_TEXT = r"text_model\.encoder\.layers\.\d+\.(?:self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12])|text_projection"
# The same with _ for dots, each in a group, so that a match tells which underscores were dots.
_UNDERSCORED = re.compile(rf"{_UNET}|{_TEXT}".replace(r"\.", "(_)"))

# What follows a resnet's name in SGM -> in diffusers.
_RESNET_ENDS = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
    "emb_layers_1": "time_emb_proj",
}


def _sgm_names(levels: int) -> dict[str, str]:
    """The original name of each part of a UNet of three levels, SDXL's, or four, -> diffusers'."""
    names = {
        "time_embed_0": "time_embedding_linear_1",
        "time_embed_2": "time_embedding_linear_2",
        "label_emb_0_0": "add_embedding_linear_1",
        "label_emb_0_2": "add_embedding_linear_2",
        "input_blocks_0_0": "conv_in",
        "out_2": "conv_out",
        "middle_block_0": "mid_block_resnets_0",
        "middle_block_1": "mid_block_attentions_0",
        "middle_block_2": "mid_block_resnets_1",
    }
    for i in range(levels):
        for k, kind in enumerate(("resnets", "attentions")):
            names |= {f"input_blocks_{3 * i + j + 1}_{k}": f"down_blocks_{i}_{kind}_{j}" for j in range(2)}
            names |= {f"output_blocks_{3 * i + j}_{k}": f"up_blocks_{i}_{kind}_{j}" for j in range(3)}
        names[f"input_blocks_{3 * i + 3}_0_op"] = f"down_blocks_{i}_downsamplers_0_conv"
        names[f"output_blocks_{3 * i + 2}_2_conv"] = f"up_blocks_{i}_upsamplers_0_conv"
    return names


# The lowest of four levels has no attention, so that its upsampler comes second.
_SGM = {"output_blocks_2_1_conv": "up_blocks_0_upsamplers_0_conv", **_sgm_names(4)}
_TO_SGM = {new: old for old, new in _sgm_names(3).items()}
_TO_RESNET_ENDS = {new: old for old, new in _RESNET_ENDS.items()}


def parse(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> Layers:
    """Layer -> (down, up) with alpha folded into `up`; without alpha a layer's alpha is its rank."""
    return gather(tensors, _locate, lambda layer, rank: 1.0, source)


def original(key: str) -> bool:
    """True if a key has the UNet's original block names."""
    return re.match(r"lora_unet_(?:input_blocks|middle_block|output_blocks)_", key) is not None


def tensors(layer: str, factors: Factors, sgm: bool = False, one_encoder: bool = False) -> dict[str, Tensor]:
    """The tensors of a layer in a kohya file, with diffusers' block names or, for SDXL's UNet, those of SGM.

    The only text encoder of a base with `one_encoder` is `lora_te`.

    Raises
    ------
    UserError
        The layer has no name in this format.
    """
    component, _, path = layer.partition(".")
    name = path.replace(".", "_")
    known = dotted(name) == path
    # diffusers mistakes its own name of the added embedding, which only SDXL has, but reads SGM's.
    if component == "unet" and (sgm or name.startswith("add_embedding")):
        name = _renamed(name, _TO_SGM, _TO_RESNET_ENDS) or ""
    if not (known and name):
        raise UserError(f"layer {layer} has no name in kohya's format; save in another")
    stem = f"{'lora_te' if one_encoder and component == 'text_encoder' else _PREFIX[component]}_{name}"
    alpha = torch.tensor(float(factors.rank))  # not in the dtype of the factors: bfloat16 would round 257
    return {f"{stem}.lora_down.weight": factors.down, f"{stem}.lora_up.weight": factors.up, f"{stem}.alpha": alpha}


def unet_path(name: str) -> str | None:
    """diffusers' path of a UNet's layer by its path in the original code or in diffusers, with dots or underscores."""
    name = name.replace(".", "_")
    return dotted(_renamed(name, _SGM, _RESNET_ENDS) or name)


def _locate(key: str) -> tuple[str, str] | None:
    match = _KEY.fullmatch(key)
    path = match and dotted(_renamed(match["name"], _SGM, _RESNET_ENDS) or match["name"])
    return (f"{_COMPONENTS[match['component']]}.{path}", _PARTS[match["part"]]) if match and path else None


def dotted(name: str) -> str | None:
    """The module path that a name with underscores stands for, or None if there is none."""
    match = _UNDERSCORED.fullmatch(name)
    if not match:
        return None
    dots = {match.start(group) for group in range(1, _UNDERSCORED.groups + 1)}
    return "".join("." if place in dots else letter for place, letter in enumerate(name))


def _renamed(name: str, parts: Mapping[str, str], ends: Mapping[str, str]) -> str | None:
    """The name with its part's name and its end exchanged, or None if it is in no such part."""
    for old, new in parts.items():
        if name == old:
            return new
        if name.startswith(f"{old}_"):
            end = name.removeprefix(f"{old}_")
            return f"{new}_{ends.get(end, end)}"
    return None
