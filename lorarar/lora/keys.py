"""Every key of a file is understood or named: spellings of other tools, updates of other kinds, other models."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from lorarar.errors import UserError

T = TypeVar("T")
_log = logging.getLogger(__name__)

KINDS = {
    r"\.hada_": "LoHa (LyCORIS)",
    r"\.lokr_": "LoKr (LyCORIS)",
    r"\.dora_scale|lora_magnitude_vector": "DoRA",
    r"\.diff(?:_b)?$|\.(?:w|b)_norm$": "full differences of weights (LyCORIS)",
    r"\.(?:a1|a2|b1|b2|bm)\.weight$": "GLoRA (LyCORIS)",
    r"boft_": "BOFT",
    r"\.oft_(?:blocks|diag|R)": "OFT",
    r"\.on_input$|ia3_": "IA3",
    r"vera_lambda_": "VeRA",
    r"\.lora_embedding_": "an embedding's LoRA",
}
"""Updates that are not up @ down, by a pattern of their keys."""

MODELS = {
    r"motion_modules?[._]": "AnimateDiff's motion modules",
    r"double_blocks\.\d+\.(?:img|txt)_attn_(?:qkv|proj)": "HunyuanVideo",
    r"(?:double|single)_blocks[._]\d+[._]|single_transformer_blocks[._]\d+": "FLUX",
    r"joint_blocks[._]\d+": "Stable Diffusion 3",
    r"transformer_blocks[._]\d+[._](?:img|txt)_(?:mlp|mod)": "Qwen-Image",
    r"(?:noise|context)_refiner[._]\d+|(?<!encoder.)layers[._]\d+[._](?:attention|feed_forward)[._]": "Lumina",
    r"(?<!transformer_)blocks[._]\d+[._](?:self|cross)_attn[._]": "Wan or Cosmos",
    r"encoder[._]block[._]\d+[._]layer[._]\d+|^lora_te3_": "T5, a text encoder of FLUX",
    r"(?<!encoder.)layers[._]\d+[._](?:self_attn[._][qkvo]_proj|mlp[._](?:gate|up|down)_proj)": "a language model",
    r"^(?:(?:base_model|model|diffusion_model|transformer|unet)\.|lora_(?:unet|transformer)_)*"
    r"transformer_blocks[._]\d": ("a transformer such as FLUX, Stable Diffusion 3, HunyuanDiT or PixArt"),
    r"down_blocks\.\d+\.\d+\.(?:channelwise|attention|depthwise)": "Stable Cascade",
    r"control(?:net|_model)[._]": "ControlNet",
    r"ip_adapter[._]|image_proj[._]": "IP-Adapter",
}
"""Models by a pattern of their keys, for keys that no base here has; the first match counts."""

CONVERT = "merge it into a checkpoint, and extract a plain LoRA with sd-scripts' networks/extract_lora_from_models.py"
"""Advice in errors: it makes a plain LoRA of an update of another kind."""

_FOREIGN = re.compile("|".join([*KINDS, *MODELS]))

_ENDS = {
    "lora_down.weight": "lora_down.weight",
    "lora_up.weight": "lora_up.weight",
    "lora_mid.weight": "lora_mid.weight",
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_A.default.weight": "lora_down.weight",
    "lora_B.default.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "alpha": "alpha",
}
_END = rf"\.(?P<end>{'|'.join(map(re.escape, _ENDS))})"
_ORIGINAL = re.compile(
    rf"(?:(?:model|unet|lora_unet|diffusion_model)\.)*"
    rf"(?P<path>(?:input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\..+?){_END}"
)
_ENCODER = re.compile(rf"text_encoders\.clip_(?P<encoder>[lhg])\.(?:transformer\.)?(?P<path>.+?){_END}")
_UNET_IN_COMFY = re.compile(
    rf"(?:model\.)?diffusion_model\.(?P<path>(?:(?:down|up)_blocks\.|mid_block\.|conv_|time_emb|add_emb).+?){_END}"
)
_BEGINNINGS = (
    (re.compile(r"^(unet|text_encoder(?:_2)?)\.base_model\.model\."), r"\1."),
    (re.compile(r"^(?:lora_unet_unet_|lycoris_(?=down_|mid_|up_|conv_|time_|add_))"), "lora_unet_"),
)


def check(keys: Iterable[str], source: str, known: frozenset[str] = frozenset()) -> None:
    """Raise `UserError` that names a kind of update or a model that is not merged here; `source` names the file.

    Keys in `known` belong to a model that is merged.
    """
    suspicious = list(filter(_FOREIGN.search, keys))
    for pattern, kind in KINDS.items():
        if found := next((key for key in suspicious if re.search(pattern, key)), None):
            raise UserError(f"{source}: {found} is {kind}, not part of a plain LoRA; {CONVERT}")
    for pattern, model in MODELS.items():
        if found := next((key for key in suspicious if key not in known and re.search(pattern, key)), None):
            raise UserError(
                f"{source}: {found} belongs to {model}; `lorarar bases` lists the models whose LoRAs are merged"
            )


def translate(tensors: Mapping[str, T], source: str) -> dict[str, T]:
    """Tensors under the keys that the three formats know; what a merge has no use for is left out with a warning."""
    renamed = {_translated(key): tensor for key, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise UserError(f"{source}: two of its keys name the same tensor; the file is damaged, make it again")
    whole = {key.removesuffix(".alpha") for key in renamed if key.endswith(".alpha")}
    stems = {key[: match.start()] for key in renamed if (match := re.search(r"\.lora[._]", key))}
    stems |= {key.rpartition(".processor.")[0] for key in renamed if ".processor." in key}
    lone = {f"{stem}.alpha" for stem in whole - stems}
    bundled = {key for key in renamed if key.startswith("bundle_emb.")}
    if lone:
        _log.warning("%s: left out %d alphas without factors, such as %s", source, len(lone), min(lone))
    if bundled:
        _log.warning("%s: left out its embeddings (textual inversion), such as %s", source, min(bundled))
    return {key: tensor for key, tensor in renamed.items() if key not in lone | bundled}


def _translated(key: str) -> str:
    for pattern, beginning in _BEGINNINGS:
        key = pattern.sub(beginning, key)
    if match := _ORIGINAL.fullmatch(key) or _UNET_IN_COMFY.fullmatch(key):
        return f"lora_unet_{match['path'].replace('.', '_')}.{_ENDS[match['end']]}"
    if match := _ENCODER.fullmatch(key):
        number = {"l": 1, "h": 1, "g": 2}[match["encoder"]]
        return f"lora_te{number}_{match['path'].replace('.', '_')}.{_ENDS[match['end']]}"
    return key
