"""Independent reference: which layers of a LoRA file the programs that people use would patch.

Each function `PROGRAMS[name](keys, base, metadata)` follows one program's rules for the names in a file. The rules
were read in the programs' sources, which each docstring names, and are written here in other words. No function
imports lorarar, so a test can hold lorarar's files against them.

A layer of the file is a name with an up factor, in any spelling; alphas and embeddings are no layers. LyCORIS
families other than LoRA (LoHa, LoKr) are not counted. A program that refuses a file patches none of its layers.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

# The published config.json of each UNet, as far as it differs from the defaults of the class.
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
TEXT_ENCODERS: dict[str, dict[str, dict[str, int]]] = {
    "sd15": {"text_encoder": _CLIP_L},
    "sd21": {"text_encoder": _CLIP_H},
    "sdxl": {"text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G | {"projection_dim": 1280}},
}

# Names of ours -> of Stability's original code, for the ends of a resnet's layers.
_RESNET_ENDS = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "time_emb_proj": "emb_layers.1",
}
_EMBEDDINGS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}

_UP = re.compile(r"(?P<stem>.+?)(?P<end>(?:[._]lora|\.lora_linear_layer)\.up\.weight|\.lora_up\.weight|\.lora_B\b.*)")
_DOWN_OF = {"lora_up": "lora_down", ".up.": ".down.", "lora_B": "lora_A"}


class Matches(NamedTuple):
    """What a program does with a file."""

    matched: int  # layers that it patches
    layers: int  # layers in the file
    unmatched: tuple[str, ...]  # names of the layers that it leaves out, as in the file
    base: str | None  # the base that it takes the file for: a key of `UNETS`, or None if it does not say
    refusal: str = ""  # why it patches nothing, if it refuses the whole file


class Refusal(Exception):
    """The program stops at this file with an error, or reports a mismatch and leaves the model as it is."""


@cache
def model(base: str) -> dict[str, dict[str, nn.Module]]:
    """Component -> module path -> module on the meta device, of all modules; paths of text encoders as in files."""
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {"unet": UNet2DConditionModel(**UNETS[base])}
        for component, numbers in TEXT_ENCODERS[base].items():
            kind = CLIPTextModelWithProjection if component == "text_encoder_2" else CLIPTextModel
            parts[component] = kind(CLIPTextConfig(**numbers))
    named = {
        component: {_in_files(component, path): module for path, module in part.named_modules() if path}
        for component, part in parts.items()
    }
    return {
        part: modules if part == "unet" else modules | {"text_model": parts[part]} for part, modules in named.items()
    }


def linear_or_conv(base: str, component: str) -> dict[str, nn.Module]:
    """Path -> module of each layer that can have a LoRA; empty where the base has no such component."""
    modules = model(base).get(component, {})
    return {path: module for path, module in modules.items() if isinstance(module, nn.Linear | nn.Conv2d)}


@cache
def original(base: str) -> dict[str, str]:
    """diffusers' path of each layer of the UNet -> its path in Stability's original code."""
    return {path: _original(path, base) for path in linear_or_conv(base, "unet")}


def comfyui(keys: Iterable[str], base: str, metadata: Mapping[str, str]) -> Matches:
    """ComfyUI, from comfy/lora.py, comfy/lora_convert.py, comfy/utils.py and comfy/weight_adapter/lora.py.

    It lists the names under which each weight of the loaded model may occur, and looks for each of them in seven
    spellings. Names of the UNet are the original or diffusers' ones after `lora_unet_`, the original path after
    `diffusion_model.`, diffusers' after `lycoris_`, and dotted diffusers' paths with or without `unet.`. In dotted
    ones `processor.` has to precede `to_q`, and `to_out` has no `.0`: newer files of diffusers lack this `processor.`,
    so that only their layers outside of attention are found. Other keys are logged and dropped. Metadata is not read.
    """
    return _by_names(keys, _comfy_names(base, newer=True), _COMFY_ENDS)


def forge(keys: Iterable[str], base: str, metadata: Mapping[str, str]) -> Matches:
    """Forge, from extensions-builtin/sd_forge_lora/{networks,network}.py, packages_3rdparty/comfyui_lora_collection.

    It has the names of an older ComfyUI, in five spellings. A file with more than 12 keys (not layers) that belong to
    nothing is left out as a whole. Alphas of known layers belong to something; keys of embeddings do not. Its
    browser of files takes the base from `modelspec.architecture`, `ss_base_model_version` and `ss_v2`.
    """
    keys = list(keys)
    names = _comfy_names(base, newer=False)
    found = _by_names(keys, names, _COMFY_ENDS - {".lora_B", ".lora_B.default.weight"})
    used = {stem + end for stem, end in _layers(keys).items() if stem not in found.unmatched}
    used |= {_down(key) for key in used}
    used |= {f"{name}{end}" for name in names for end in (".alpha", ".dora_scale")}
    used |= {key.replace(".lora_up.", ".lora_mid.") for key in used}
    left = [key for key in keys if key not in used]
    architecture = metadata.get("modelspec.architecture", "")
    if architecture == "stable-diffusion-xl-v1-base/lora" or _version(metadata).startswith("sdxl_"):
        taken = "sdxl"
    elif metadata.get("ss_v2") == "True":
        taken = "sd21"
    else:
        taken = "sd15" if architecture == "stable-diffusion-v1/lora" else None
    if len(left) > 12:
        return _refused(keys, taken, f"{len(left)} keys belong to nothing in the model, and at most 12 may")
    return found._replace(base=taken)


def a1111(keys: Iterable[str], base: str, metadata: Mapping[str, str]) -> Matches:
    """The Lora extension of stable-diffusion-webui, from extensions-builtin/Lora/{networks,network,network_lora}.py.

    What precedes the first dot of a key names a layer. Rules turn diffusers' names into those of the original code,
    and know the UNet of SD 1.x: for SDXL they misplace the upsampler of `up_blocks_0` and have nothing for
    `add_embedding`. Names that no rule changed are tried as original ones. `lora_te_` is the only text encoder of
    SD 1.x and 2.x, `lora_te1_` the first of SDXL (and that of SD 1.x), `lora_te2_` the second. A layer that it finds
    but that has no two factors, such as an alpha alone, is an error, and the file is left out as a whole.

    The base decides which files the browser shows: `ss_base_model_version` that begins with `sdxl_`, then `ss_v2`
    (`True`), else SD 1.x if there is any metadata.
    """
    keys = list(keys)
    modules = _a1111_modules(base)
    parts: dict[str, set[str]] = {}
    for key in keys:
        name, _, part = key.partition(".")
        if module := _a1111_module(name, base, modules):
            parts.setdefault(module, set()).add(part)
    taken = "sdxl" if _version(metadata).startswith("sdxl_") else "sd21" if metadata.get("ss_v2") == "True" else None
    taken = taken or ("sd15" if metadata else None)
    for module, found in parts.items():
        if not any(factors <= found for factors in _A1111_FACTORS):
            return _refused(keys, taken, f"{module} has only {', '.join(sorted(found))}")
    return _count(_layers(keys), lambda stem: _a1111_module(stem.partition(".")[0], base, modules), taken)


def sd_scripts(keys: Iterable[str], base: str, metadata: Mapping[str, str]) -> Matches:
    """kohya's sd-scripts as they load weights, from networks/lora.py and library/sdxl_model_util.py.

    A layer is what precedes the first dot of a key with `lora_down`. The UNet has diffusers' names for SD 1.x and 2.x,
    the original ones for SDXL, to which names of diffusers are changed if the file has `down_blocks` or `up_blocks`.
    Layers are looked for in transformers, resnets, downsamplers and upsamplers: never `conv_in`, `conv_out` or an
    embedding. Text encoders, in attention and MLP, are `lora_te_`, or for SDXL `lora_te1_` and `lora_te2_`.

    Loading takes the base from the command. sdxl_merge_lora.py copies `ss_v2` and `ss_base_model_version`.
    """
    keys = list(keys)
    present = set(keys)
    names = original(base) if base == "sdxl" else {path: path for path in linear_or_conv(base, "unet")}
    inside = re.compile(r"(resnets|attentions|downsamplers|upsamplers)\.")
    known = {f"lora_unet_{_flat(name)}" for path, name in names.items() if inside.search(path)}
    prefixes = {"text_encoder": "lora_te1_" if base == "sdxl" else "lora_te_", "text_encoder_2": "lora_te2_"}
    for component, prefix in prefixes.items():
        known |= {prefix + _flat(path) for path in linear_or_conv(base, component) if path != "text_projection"}
    blocks = (
        _sdxl_blocks() if base == "sdxl" and any("down_blocks" in key or "up_blocks" in key for key in keys) else {}
    )

    def module(stem: str) -> str | None:
        name = stem.split(".")[0]
        if f"{stem}.lora_down.weight" not in present or stem != name:
            return None
        if name.startswith("lora_unet_"):
            # The first block whose name is anywhere in the layer's.
            block = next((old for old in blocks.values() if old in name), None)
            name = name.replace(block, {old: new for new, old in blocks.items()}[block]) if block else name
        return name if name in known else None

    return _count(_layers(keys), module, None)


def invokeai(keys: Iterable[str], base: str, metadata: Mapping[str, str]) -> Matches:
    """InvokeAI, from model_manager/{configs/lora,load/model_loaders/lora,util/model_util}.py in invokeai/backend, and
    patches/{layer_patcher,lora_conversions/sd_lora_conversion_utils,lora_conversions/sdxl_lora_conversion_utils}.py.

    The base comes from shapes when a file is installed: the inputs of the first cross-attention key or value (768,
    1024, 2048), or the widths of the text encoders (SDXL's two are added up), or else from transformer blocks that
    only SDXL has. A file that gives none of these is not recognised, as all files with dotted names. A file taken for
    another base cannot be chosen. `keys` has to be a mapping to tensors; of bare names the base is taken as given.

    SDXL files may only have keys that begin with `lora_unet_`, `lora_te1_` or `lora_te2_`, and names of the UNet are
    either all original or all diffusers'. What precedes the first dot names a layer; each needs factors, so that an
    alpha alone is an error. Names are then looked up in diffusers' models. Embeddings (`bundle_emb`) are skipped.
    Metadata announces the OMI layout of SDXL, whose conversion is not followed here.
    """
    layers = _layers(keys)
    taken = _invoke_base(keys) if isinstance(keys, Mapping) else base
    keys = [key for key in keys if not key.startswith("bundle_emb")]
    prefixes = {"text_encoder": "lora_te1_" if base == "sdxl" else "lora_te_", "text_encoder_2": "lora_te2_"}
    parts = {"unet": "lora_unet_"} | {part: prefix for part, prefix in prefixes.items() if part in model(base)}
    try:
        if taken != base:
            raise Refusal(f"its shapes are those of {taken or 'no base'}")
        new_name = _invoke_sdxl_names(keys) if base == "sdxl" else {}
        groups: dict[str, set[str]] = {}
        for key in keys:
            name, dot, end = key.partition(".")
            if not dot:
                raise Refusal(f"{key} has no dot")
            groups.setdefault(new_name.get(name, name), set()).add(end)
        for name, ends in groups.items():
            if "lora_up.weight" not in ends and not ends & _INVOKE_OTHERS:
                raise Refusal(f"{name} has only {', '.join(sorted(ends))}")
    except Refusal as refusal:
        return _refused(keys, taken, str(refusal))

    def module(stem: str) -> str | None:
        name = new_name.get(stem, stem)
        for component, prefix in parts.items():
            if name.startswith(prefix) and _flattened(name.removeprefix(prefix), model(base)[component]):
                return name
        return None

    return _count(layers, module, taken)


PROGRAMS: dict[str, Callable[[Iterable[str], str, Mapping[str, str]], Matches]] = {
    "ComfyUI": comfyui,
    "A1111": a1111,
    "Forge": forge,
    "sd-scripts": sd_scripts,
    "InvokeAI": invokeai,
}

_COMFY_ENDS = {
    ".lora_up.weight",
    "_lora.up.weight",
    ".lora_B.weight",
    ".lora.up.weight",
    ".lora_B",
    ".lora_linear_layer.up.weight",
    ".lora_B.default.weight",
}
_A1111_FACTORS = (
    {"lora_up.weight", "lora_down.weight"},
    {"lora_A.weight", "lora_B.weight"},
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    {"lokr_w1"},
    {"lokr_w1_a"},
    {"diff"},
    {"w_norm", "b_norm"},
    {"oft_blocks"},
    {"oft_diag"},
    {"weight"},
    {"a1.weight", "a2.weight", "alpha", "b1.weight", "b2.weight"},
)
_INVOKE_OTHERS = {"dora_scale", "hada_w1_a", "lokr_w1", "lokr_w1_a", "diff", "on_input", "w_norm"}


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _down(key: str) -> str:
    for up, down in _DOWN_OF.items():
        key = key.replace(up, down)
    return key


def _layers(keys: Iterable[str]) -> dict[str, str]:
    """Name of each layer in the file -> the end of its up key."""
    found = (_UP.fullmatch(key) for key in keys)
    return {match["stem"]: match["end"] for match in found if match}


def _count(layers: Iterable[str], module: Callable[[str], str | None], base: str | None) -> Matches:
    """The matches if `module` tells which module a layer goes to; the last of several for one module wins."""
    layers = list(layers)
    last = {place: stem for stem in layers if (place := module(stem))}
    unmatched = tuple(stem for stem in layers if stem not in set(last.values()))
    return Matches(len(last), len(layers), unmatched, base)


def _refused(keys: Iterable[str], base: str | None, why: str) -> Matches:
    layers = _layers(keys)
    return Matches(0, len(layers), tuple(layers), base, why)


def _version(metadata: Mapping[str, str]) -> str:
    return metadata.get("ss_base_model_version", "")


def _in_files(component: str, path: str) -> str:
    """A module path as files write it: newer versions of transformers have no `text_model`."""
    if component == "unet" or path == "text_projection" or path.split(".")[0] == "text_model":
        return path
    return f"text_model.{path}"


def _original(path: str, base: str) -> str:
    """The original path of a layer of the UNet, whose blocks are counted through all levels there."""
    if path in _EMBEDDINGS:
        return _EMBEDDINGS[path]
    side, *rest = path.split(".")
    if side == "mid_block":
        kind, place, *end = rest
        block = "middle_block." + ("1" if kind == "attentions" else str(2 * int(place)))
    else:
        level, kind, place, *end = rest
        part = {"resnets": 0, "attentions": 1, "downsamplers": 0}.get(kind)
        number = 3 * int(level) + int(place)
        if side == "down_blocks":
            block = f"input_blocks.{number + (3 if kind == 'downsamplers' else 1)}.{part}"
            end = ["op"] if kind == "downsamplers" else end
        else:
            if kind == "upsamplers":  # it is the last of the block, after the attention if there is one
                number, part = number + 2, 2 if f"up_blocks.{level}.attentions" in model(base)["unet"] else 1
            block = f"output_blocks.{number}.{part}"
    return f"{block}.{_RESNET_ENDS.get('.'.join(end), '.'.join(end))}"


@cache
def _comfy_names(base: str, newer: bool) -> dict[str, str]:
    """Each name that ComfyUI knows, or Forge, which has an older list -> the weight that it stands for."""
    names = {}
    for path, old in original(base).items():
        dotted = path.replace(".to_", ".processor.to_")
        dotted = dotted.removesuffix(".0") if dotted.endswith(".to_out.0") else dotted
        spellings = (f"lora_unet_{_flat(old)}", f"diffusion_model.{old}", f"lora_unet_{_flat(path)}")
        for name in (*spellings, f"lycoris_{_flat(path)}", dotted, f"unet.{dotted}"):
            names[name] = f"unet.{old}"
    own = {"sd15": ["clip_l"], "sd21": ["clip_h"], "sdxl": ["clip_l", "clip_g"]}[base]
    for component, clip in zip(TEXT_ENCODERS[base], own, strict=True):
        for path in linear_or_conv(base, component):
            weight = f"{clip}.transformer.{path}"
            if newer:
                names[f"text_encoders.{weight}"] = weight
            if path == "text_projection":
                continue
            prefixes = ("lora_te2_",) if clip == "clip_g" else ("lora_te_", "lora_te1_")
            names |= {prefix + _flat(path): weight for prefix in prefixes}
            names[f"{component}.{path}"] = weight
    if "clip_l" in own:  # both give this encoder a projection, which has no effect
        names["lora_te1_text_projection"] = "clip_l.transformer.text_projection"
    if "clip_g" in own:
        names["lora_te2_text_projection"] = "clip_g.transformer.text_projection"
        names["lora_prior_te_text_projection" if newer else "text_encoder.text_projection"] = (
            "clip_g.transformer.text_projection"
        )
    return names


def _by_names(keys: Iterable[str], names: Mapping[str, str], ends: set[str]) -> Matches:
    keys = list(keys)
    layers = _layers(keys)
    present = set(keys)

    def module(stem: str) -> str | None:
        return names.get(stem) if layers[stem] in ends else None

    for stem, end in layers.items():
        if module(stem) and _down(stem + end) not in present:
            return _refused(keys, None, f"{stem} has no {_down(end)}")
    return _count(layers, module, None)


@cache
def _a1111_modules(base: str) -> frozenset[str]:
    """Names of all modules with weights in the model, as the extension writes them."""
    names = {f"diffusion_model_{_flat(path)}" for path in original(base).values()}
    clip_l = [_flat(path) for path in linear_or_conv(base, "text_encoder")]
    if base == "sd15":
        names |= {f"transformer_{path}" for path in clip_l}
    if base == "sdxl":
        names |= {f"0_transformer_{path}" for path in clip_l}
    if base != "sd15":  # OpenCLIP's own code: one module for query, key and value; one more layer than is used for SD 2
        prefix, depth = ("1_model", 32) if base == "sdxl" else ("model", 24)
        for layer in range(depth):
            block = f"{prefix}_transformer_resblocks_{layer}"
            names |= {f"{block}_{end}" for end in ("attn", "attn_out_proj", "mlp_c_fc", "mlp_c_proj")}
    return frozenset(names)


def _a1111_module(name: str, base: str, modules: frozenset[str]) -> str | None:
    """The module that a layer's name stands for: through the rules, else as an original name."""
    new = _a1111_rule(name, base == "sd21")
    candidates = [new]
    if name.startswith("lora_unet"):
        candidates.append(name.replace("lora_unet", "diffusion_model"))
    elif "lora_te1_text_model" in name:
        candidates += [name.replace("lora_te1_text_model", f"{place}transformer_text_model") for place in ("0_", "")]
    if new in modules:
        return new
    fused = re.fullmatch(r"(.*)_[qkv]_proj", new)
    if fused and fused[1] in modules:  # three layers of the file, one module: each keeps its own name
        return new
    return next((candidate for candidate in candidates if candidate in modules), None)


def _a1111_rule(name: str, sd2: bool) -> str:
    """A layer's name in the original code; unchanged if no rule is for it."""
    if match := re.match(r"lora_unet_conv_(in|out)(.*)", name):
        return f"diffusion_model_{'input_blocks_0_0' if match[1] == 'in' else 'out_2'}{match[2]}"
    if match := re.match(r"lora_unet_time_embedding_linear_(\d+)(.*)", name):
        return f"diffusion_model_time_embed_{2 * int(match[1]) - 2}{match[2]}"
    if match := re.match(r"lora_unet_(?:(down|up)_blocks_(\d+)|mid_block)_(attentions|resnets)_(\d+)_(.+)", name):
        side, level, kind, place, end = match.groups()
        end = _flat(_RESNET_ENDS.get(end, end)) if kind == "resnets" else end
        part = int(kind == "attentions")
        if not side:
            return f"diffusion_model_middle_block_{1 if part else 2 * int(place)}_{end}"
        number = 3 * int(level) + int(place)
        block = f"input_blocks_{number + 1}" if side == "down" else f"output_blocks_{number}"
        return f"diffusion_model_{block}_{part}_{end}"
    if match := re.match(r"lora_unet_down_blocks_(\d+)_downsamplers_0_conv", name):
        return f"diffusion_model_input_blocks_{3 * int(match[1]) + 3}_0_op"
    if match := re.match(r"lora_unet_up_blocks_(\d+)_upsamplers_0_conv", name):
        level = int(match[1])
        return f"diffusion_model_output_blocks_{3 * level + 2}_{2 if level else 1}_conv"
    if match := re.match(r"lora_te(2?)_text_model_encoder_layers_(\d+)_(.+)", name):
        second, layer, end = match.groups()
        if second or sd2:
            for ours, theirs in (("mlp_fc1", "mlp_c_fc"), ("mlp_fc2", "mlp_c_proj"), ("self_attn", "attn")):
                end = end.replace(ours, theirs)
            return f"{'1_' if second else ''}model_transformer_resblocks_{layer}_{end}"
        return f"transformer_text_model_encoder_layers_{layer}_{end}"
    return name


@cache
def _sdxl_blocks() -> dict[str, str]:
    """Original name of each block of SDXL's UNet, or of a layer in a resnet or embedding -> diffusers' name.

    Two programs share this table. It has norms and attentions that SDXL lacks too; they match nothing.
    """
    ends = _RESNET_ENDS | {"norm1": "in_layers.0", "norm2": "out_layers.0"}
    table: dict[str, str] = {}

    def add(old: str, new: str, kind: str = "") -> None:
        table.update(
            {f"{old}_{_flat(end)}": f"{new}_{name}" for name, end in ends.items()} if kind == "resnets" else {old: new}
        )

    for level in range(3):
        for part, kind in enumerate(("resnets", "attentions")):
            for place in range(2):
                add(f"input_blocks_{3 * level + place + 1}_{part}", f"down_blocks_{level}_{kind}_{place}", kind)
            for place in range(3):
                add(f"output_blocks_{3 * level + place}_{part}", f"up_blocks_{level}_{kind}_{place}", kind)
        add(f"input_blocks_{3 * level + 3}_0_op", f"down_blocks_{level}_downsamplers_0_conv")
        add(f"output_blocks_{3 * level + 2}_2", f"up_blocks_{level}_upsamplers_0")
    add("middle_block_1", "mid_block_attentions_0")
    for place in range(2):
        add(f"middle_block_{2 * place}", f"mid_block_resnets_{place}", "resnets")
    for new, old in (_EMBEDDINGS | {"conv_norm_out": "out.0"}).items():
        add(_flat(old), _flat(new))
    return table


def _invoke_sdxl_names(keys: Iterable[str]) -> dict[str, str]:
    """Original name of a layer in the file -> diffusers' name, of all or of none."""
    table = _sdxl_blocks()
    starts = sorted(table)
    names = {}
    unchanged = []
    for key in keys:
        if key.startswith("lora_unet_"):
            name = key.partition(".")[0]
            rest = key.removeprefix("lora_unet_")
            start = starts[bisect_right(starts, rest) - 1]
            if rest.startswith(start):
                names[name] = name.replace(start, table[start])
            else:
                unchanged.append(name)
        elif not key.startswith(("lora_te1_", "lora_te2_")):
            raise Refusal(f"{key} does not begin as names of SDXL do")
    if names and unchanged:
        raise Refusal(f"{unchanged[0]} is no original name, but {next(iter(names))} is")
    return names


def _flattened(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a name leads to a module: parts between underscores are joined until they name a child."""
    path = ""
    child, *parts = name.split("_")
    for part in parts:
        if path + child in modules:
            path, child = f"{path}{child}.", part
        else:
            child = f"{child}_{part}"
    return path + child in modules


def _invoke_base(tensors: Mapping[str, Any]) -> str | None:
    """The base that shapes tell, in the order of the file's keys."""
    bases = {768: "sd15", 1024: "sd21", 1280: "sdxl", 2048: "sdxl"}
    first = second = None
    length = None
    for key, tensor in tensors.items():
        size = tensor.shape[1] if key.partition(".")[2] == "lora_down.weight" else None
        if key.startswith("lora_unet_") and re.search(r"_attn2_to_[kv]\.|time_emb_proj\.lora_down", key):
            length = size
        elif key.startswith("lora_te") and "_self_attn_" in key:
            if key.startswith("lora_te_"):
                length = size
            elif key.startswith("lora_te1_"):
                first = size
            elif key.startswith("lora_te2_"):
                second = size
        if first is not None and second is not None:
            length = first + second
        if length is not None:
            return bases.get(length)
    blocks = (r"(?:down|up)_blocks_\d+_attentions_\d+", r"mid_block_attentions_\d+")
    blocks += (r"(?:in|out)put_blocks_\d+_\d+", r"middle_block_\d+")
    deep = re.compile(rf"lora_unet_(?:{'|'.join(blocks)})_transformer_blocks_(\d+)_")
    return "sdxl" if any((match := deep.match(key)) and int(match[1]) >= 2 for key in tensors) else None
