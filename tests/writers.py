"""Small generators of LoRA files in the layouts that trainers and tools write, with the update that each layer means.

`WRITERS[name](base, rank, seed)` makes a file for a base ("sd15", "sd21", "sdxl") with random factors of full size,
so that shapes tell the base too. Names were read in the tools' sources, and are put together here independently of
lorarar. Layers are named `unet.<path>`, `text_encoder.<path>` and `text_encoder_2.<path>` in `Written.truth`.
`TRANSFORMER_WRITERS` has the layouts of transformers, for tiny models: layers are `transformer.<path>`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

import diffusers
import torch
from torch import Tensor, nn

from tests.loaders import TEXT_ENCODERS, linear_or_conv, original


class Update(NamedTuple):
    """The factors of one layer, whose product is its update; `dense` is not computed before it is asked for."""

    down: Tensor  # (r, n_in), or (r, n_in, kernel, kernel) of a convolution
    up: Tensor  # (m_out, r), or (m_out, r, 1, 1)
    scale: float  # alpha / r
    mid: Tensor | None = None  # (r, r, kernel, kernel): Tucker factors, of which down and up are 1 x 1

    def dense(self) -> Tensor:
        """dW in the shape of the layer's weight."""
        if self.mid is not None:
            return self.scale * torch.einsum("oa,abhw,bi->oihw", self.up.flatten(1), self.mid, self.down.flatten(1))
        product = self.up.flatten(1) @ self.down.flatten(1)
        return self.scale * product.view(self.up.shape[0], *self.down.shape[1:])


class Written(NamedTuple):
    """A file and what it means."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    truth: dict[str, Update]
    sidecar: dict[str, Any] | None = None  # peft's adapter_config.json, where the layout has one


class Writer(Protocol):
    """Makes a file for a base; of transformers, `scale` times as large as the tiny model's."""

    def __call__(self, base: str, rank: int, seed: int, **scale: int) -> Written: ...


def in_transformers(component: str, path: str) -> bool:
    """What sd-scripts trains by default: linear layers and 1 x 1 convolutions in transformers, and text encoders."""
    return path != "text_projection" if component != "unet" else ".attentions." in path


def with_convolutions(component: str, path: str) -> bool:
    """What sd-scripts trains with a `conv_dim`: also resnets, downsamplers and upsamplers."""
    inside = any(part in path for part in ("resnets.", "attentions.", "samplers."))
    return in_transformers(component, path) if component != "unet" else inside


def attention(component: str, path: str) -> bool:
    """What diffusers' scripts train: the projections of attention, in the UNet and in text encoders."""
    return ".to_" in path if component == "unet" else ".self_attn." in path


def unet_attention(component: str, path: str) -> bool:
    """The projections of attention, of the UNet alone."""
    return component == "unet" and ".to_" in path


def kohya_name(base: str, component: str, path: str, sgm: bool) -> str:
    """sd-scripts' name of a layer, with the original block names of the UNet or with those of diffusers."""
    if component == "unet":
        return f"lora_unet_{_flat(original(base)[path] if sgm else path)}"
    prefix = "lora_te2" if component == "text_encoder_2" else "lora_te1" if base == "sdxl" else "lora_te"
    return f"{prefix}_{_flat(path)}"


def sd_scripts_name(base: str, component: str, path: str) -> str:
    """networks/lora.py: original names for SDXL, diffusers' for SD 1.x and 2.x."""
    return kohya_name(base, component, path, sgm=base == "sdxl")


def flat_diffusers_name(base: str, component: str, path: str) -> str:
    """The same with diffusers' names for every base."""
    return kohya_name(base, component, path, sgm=False)


def flat_twice_name(base: str, component: str, path: str) -> str:
    """A flattened name whose `unet.` was not taken away before `lora_unet_` was put in front."""
    name = kohya_name(base, component, path, sgm=False)
    return name.replace("lora_unet_", "lora_unet_unet_") if component == "unet" else name


def dotted_name(base: str, component: str, path: str) -> str:
    """diffusers' name: the component, then the path."""
    return f"{component}.{path}"


def processor_name(base: str, component: str, path: str) -> str:
    """diffusers' name before 0.20, when each projection was part of an attention processor."""
    return f"unet.{path.replace('.to_', '.processor.to_').removesuffix('.0')}"


def bare_processor_name(base: str, component: str, path: str) -> str:
    """The same as `unet.save_attn_procs` writes it, without the component."""
    return processor_name(base, component, path).removeprefix("unet.")


def peft_name(base: str, component: str, path: str) -> str:
    """peft's name in a folder of one component."""
    return f"base_model.model.{path}"


def original_name(base: str, component: str, path: str) -> str:
    """OneTrainer's ORIGINAL: the original path with nothing before it."""
    return original(base)[path]


def comfy_name(base: str, component: str, path: str) -> str:
    """OneTrainer's COMFY: the path in ComfyUI's model."""
    if component == "unet":
        return f"diffusion_model.{original(base)[path]}"
    clip = "clip_g" if component == "text_encoder_2" else "clip_h" if base == "sd21" else "clip_l"
    return f"text_encoders.{clip}.transformer.{path}"


def lycoris_name(base: str, component: str, path: str) -> str:
    """LyCORIS as SimpleTuner runs it."""
    return f"lycoris_{_flat(path)}"


class Ends(NamedTuple):
    """What follows the name of a layer."""

    down: str
    up: str
    alpha: str | None = None

    def of(self, component: str) -> Ends:
        """diffusers has another end for text encoders where it writes `.lora.` for the UNet."""
        if component == "unet" or ".lora." not in self.down:
            return self
        return Ends(*(end and end.replace(".lora.", ".lora_linear_layer.") for end in self))


KOHYA = Ends(".lora_down.weight", ".lora_up.weight", ".alpha")
PEFT = Ends(".lora_A.weight", ".lora_B.weight")
PEFT_DEFAULT = Ends(".lora_A.default.weight", ".lora_B.default.weight")
PEFT_ALPHA = Ends(".lora_A.weight", ".lora_B.weight", ".alpha")
DIFFUSERS = Ends(".lora.down.weight", ".lora.up.weight")
PROCESSOR = Ends("_lora.down.weight", "_lora.up.weight")


def plain(
    base: str,
    rank: int,
    seed: int,
    *,
    layers: Callable[[str, str], bool],
    name: Callable[[str, str, str], str],
    ends: Ends,
    alpha: float = 1.0,
    fold: bool = False,
    tucker: bool = False,
    extra: Callable[[str, str, int], dict[str, Tensor]] | None = None,
    metadata: Callable[[str, int, float], dict[str, str]] = lambda base, rank, alpha: {},
    sidecar: Callable[[int, float], dict[str, Any]] | None = None,
) -> Written:
    """A file with one name and one spelling of the factors for all layers.

    Parameters
    ----------
    layers
        Whether a layer, (component, path), is in the file.
    name, ends
        What the keys of a layer begin and end with.
    alpha
        The share of the rank that alpha is: 1 where the layout has no place for another.
    fold
        The trainer multiplies `up` by alpha / r before it saves, and writes no alpha.
    tucker
        Convolutions with a kernel have Tucker factors, as LyCORIS writes them with `use_tucker`.
    extra
        Further tensors, which belong to no layer of the file.
    """
    tensors: dict[str, Tensor] = {}
    truth = {}
    generator = torch.Generator().manual_seed(seed)
    for component, path, module in _modules(base, layers):
        down, up, mid = _factors(module, rank, tucker, generator)
        if fold:
            up = up * alpha
        stem = name(base, component, path)
        end = ends.of(component)
        tensors |= {stem + end.down: down, stem + end.up: up}
        if mid is not None:
            tensors[f"{stem}.lora_mid.weight"] = mid
        if end.alpha:
            tensors[stem + end.alpha] = torch.tensor(alpha * rank)
        truth[f"{component}.{path}"] = Update(down, up, 1.0 if fold else alpha, mid)
    if extra:
        tensors |= extra(base, next(iter(tensors)), rank)
    return Written(tensors, metadata(base, rank, alpha), truth, sidecar and sidecar(rank, alpha * rank))


def cloneofsimo(base: str, rank: int, seed: int) -> list[Tensor]:
    """The list that cloneofsimo's `save_lora_weight` puts into a .pt file: up, down, up, down, ... in float16.

    No name is in the file: the order is that of the attention projections and GEGLU layers in the model that trained,
    and so of the version of diffusers. A reader can only refuse it, or ask for that order.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[Tensor] = []
    for _, _, module in _modules(base, lambda part, path: unet_attention(part, path) or path.endswith("ff.net.0.proj")):
        down, up, _ = _factors(module, rank, False, generator)
        layers += [up.half(), down.half()]
    return layers


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _modules(base: str, layers: Callable[[str, str], bool]) -> Iterator[tuple[str, str, nn.Module]]:
    for component in (*TEXT_ENCODERS[base], "unet"):
        for path, module in linear_or_conv(base, component).items():
            if layers(component, path):
                yield component, path, module


def _factors(
    module: nn.Module, rank: int, tucker: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Random down and up, and mid of a convolution with a kernel if `tucker`."""
    rows, columns, *kernel = module.get_parameter("weight").shape
    ones = [1] * len(kernel)
    split = tucker and any(size > 1 for size in kernel)
    random = partial(torch.randn, generator=generator)
    mid = random(rank, rank, *kernel) if split else None
    return random(rank, columns, *(ones if split else kernel)), random(rows, rank, *ones), mid


def _sd_scripts_metadata(base: str, rank: int, alpha: float) -> dict[str, str]:
    """What train_network.py writes about the base and the rank."""
    architecture = {
        "sd15": "stable-diffusion-v1",
        "sd21": "stable-diffusion-v2-768-v",
        "sdxl": "stable-diffusion-xl-v1-base",
    }
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha * rank),
        "ss_v2": str(base == "sd21"),
        "ss_base_model_version": {"sd15": "sd_v1", "sd21": "sd_v2", "sdxl": "sdxl_base_v1-0"}[base],
        "modelspec.architecture": f"{architecture[base]}/lora",
    }


def _diffusers_metadata(base: str, rank: int, alpha: float) -> dict[str, str]:
    """peft's configuration of each component, which diffusers has written since 0.34."""
    parts = ("unet", *TEXT_ENCODERS[base])
    entries = {f"{part}.{key}": value for part in parts for key, value in _peft_config(rank, alpha * rank).items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(entries, sort_keys=True)}


def _peft_config(rank: int, alpha: float) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        "target_modules": ["to_k", "to_out.0", "to_q", "to_v"],
    }


def _embeddings(base: str, key: str, rank: int) -> dict[str, Tensor]:
    """Two tokens, as OneTrainer bundles them with a LoRA."""
    widths = {"sd15": {"vector": 768}, "sd21": {"vector": 1024}, "sdxl": {"clip_l": 768, "clip_g": 1280}}[base]
    return {f"bundle_emb.<token>.{part}": torch.ones(2, width) for part, width in widths.items()}


def _lone_alpha(base: str, key: str, rank: int) -> dict[str, Tensor]:
    """The alpha of a layer that has no factors, as tools leave it that drop layers of zeros."""
    return {"lora_unet_conv_in.alpha": torch.tensor(float(rank))}


_kohya = partial(plain, name=sd_scripts_name, ends=KOHYA, alpha=0.5, metadata=_sd_scripts_metadata)
_flat_diffusers = partial(plain, name=flat_diffusers_name, ends=KOHYA, alpha=0.5)
_dotted = partial(plain, layers=attention, name=dotted_name)

WRITERS: dict[str, Writer] = {
    # kohya-ss/sd-scripts networks/lora.py; KohakuBlueleaf/LyCORIS for Tucker factors
    "kohya": partial(_kohya, layers=in_transformers),
    "kohya-conv": partial(_kohya, layers=with_convolutions),
    "kohya-tucker": partial(_kohya, layers=with_convolutions, tucker=True),
    "kohya-embeddings": partial(_kohya, layers=in_transformers, extra=_embeddings),
    "kohya-lone-alpha": partial(_kohya, layers=in_transformers, extra=_lone_alpha),
    # Nerogar/OneTrainer modules/util/convert_lora_util.py and modules/modelSaver/mixin/LoRASaverMixin.py
    "onetrainer-legacy": partial(_flat_diffusers, layers=with_convolutions),
    "onetrainer-kohya": partial(_kohya, layers=with_convolutions, metadata=lambda base, rank, alpha: {}),
    "onetrainer-diffusers": partial(plain, layers=in_transformers, name=dotted_name, ends=PEFT, alpha=0.5, fold=True),
    "onetrainer-original": partial(
        plain,
        layers=lambda part, path: part == "unet" and in_transformers(part, path),
        name=original_name,
        ends=PEFT_ALPHA,
        alpha=0.5,
    ),
    "onetrainer-comfy": partial(plain, layers=in_transformers, name=comfy_name, ends=PEFT_ALPHA, alpha=0.5),
    # huggingface/diffusers: attention processors, save_lora_weights since peft, and with the metadata of 0.34
    "diffusers-processors": partial(plain, layers=unet_attention, name=processor_name, ends=PROCESSOR),
    "diffusers-attn-procs": partial(plain, layers=unet_attention, name=bare_processor_name, ends=PROCESSOR),
    "diffusers": partial(_dotted, ends=DIFFUSERS),
    "diffusers-lora_A": partial(_dotted, ends=PEFT),
    "diffusers-metadata": partial(_dotted, ends=PEFT, alpha=2.0, metadata=_diffusers_metadata),
    "diffusers-kohya": partial(plain, layers=attention, name=flat_diffusers_name, ends=KOHYA),
    "lora_unet_unet": partial(plain, layers=attention, name=flat_twice_name, ends=KOHYA),
    # huggingface/peft: save_pretrained, and the state dict of the model itself
    "peft": partial(plain, layers=unet_attention, name=peft_name, ends=PEFT, alpha=2.0, sidecar=_peft_config),
    "peft-default": partial(
        plain, layers=unet_attention, name=peft_name, ends=PEFT_DEFAULT, alpha=2.0, sidecar=_peft_config
    ),
    # bghira/SimpleTuner helpers/training/lora_format.py: diffusers' or ComfyUI's names, and LyCORIS
    "simpletuner": partial(_dotted, ends=PEFT, alpha=0.5, metadata=_diffusers_metadata),
    "simpletuner-comfyui": partial(_flat_diffusers, layers=attention),
    "simpletuner-lycoris": partial(plain, layers=unet_attention, name=lycoris_name, ends=KOHYA, alpha=0.5),
    # ostris/ai-toolkit toolkit/lora_special.py, for UNets
    "ai-toolkit": partial(_flat_diffusers, layers=in_transformers),
    # invoke-ai/invoke-training _shared/stable_diffusion/lora_checkpoint_utils.py
    "invoke": partial(_flat_diffusers, layers=attention),
}


# Transformers, small: widths are a few numbers, blocks one to three.


class Transformer(NamedTuple):
    """A tiny model of a class of diffusers, and the names of its layers in the base's own code.

    `blocks` maps stacks of blocks, and `ends` what follows the number of a block: several layers with one name are
    stacked there in the order of this table.
    """

    model: str
    pipeline: str
    config: dict[str, Any]
    blocks: dict[str, str]
    ends: dict[str, str]


_FLUX_ATTENTION = {
    "attn.to_q": "img_attn.qkv",
    "attn.to_k": "img_attn.qkv",
    "attn.to_v": "img_attn.qkv",
    "attn.to_out.0": "img_attn.proj",
    "attn.add_q_proj": "txt_attn.qkv",
    "attn.add_k_proj": "txt_attn.qkv",
    "attn.add_v_proj": "txt_attn.qkv",
    "attn.to_add_out": "txt_attn.proj",
}
_FLUX_ENDS = _FLUX_ATTENTION | {
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
}
_FLUX_SINGLE = {
    "attn.to_q": "linear1",
    "attn.to_k": "linear1",
    "attn.to_v": "linear1",
    "proj_mlp": "linear1",
    "proj_out": "linear2",
    "norm.linear": "modulation.lin",
}
_FLUX_BLOCKS = {"transformer_blocks": "double_blocks", "single_transformer_blocks": "single_blocks"}
_FLUX = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
_FLUX |= {"in_channels": 4, "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 8)}
_SD3 = {"sample_size": 8, "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 3}
_SD3 |= {"attention_head_dim": 8, "num_attention_heads": 4, "joint_attention_dim": 24, "caption_projection_dim": 32}
_SD3 |= {"pooled_projection_dim": 24, "pos_embed_max_size": 12}

TRANSFORMERS = {
    "flux1": Transformer(
        "FluxTransformer2DModel",
        "FluxPipeline",
        _FLUX | {"pooled_projection_dim": 24, "guidance_embeds": False},
        _FLUX_BLOCKS,
        _FLUX_ENDS | {f"single:{end}": name for end, name in _FLUX_SINGLE.items()},
    ),
    "chroma": Transformer(
        "ChromaTransformer2DModel",
        "ChromaPipeline",
        _FLUX | {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
        _FLUX_BLOCKS,
        _FLUX_ENDS | {f"single:{end}": name for end, name in _FLUX_SINGLE.items()},
    ),
    "flux2": Transformer(
        "Flux2Transformer2DModel",
        "Flux2Pipeline",
        _FLUX | {"axes_dims_rope": (4, 4, 4, 4), "guidance_embeds": False},
        _FLUX_BLOCKS,
        _FLUX_ATTENTION
        | {"ff.linear_in": "img_mlp.0", "ff.linear_out": "img_mlp.2"}
        | {"ff_context.linear_in": "txt_mlp.0", "ff_context.linear_out": "txt_mlp.2"}
        | {"single:attn.to_qkv_mlp_proj": "linear1", "single:attn.to_out": "linear2"},
    ),
    "sd35": Transformer(
        "SD3Transformer2DModel",
        "StableDiffusion3Pipeline",
        _SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
        {"transformer_blocks": "joint_blocks"},
        {
            **dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v"), "x_block.attn.qkv"),
            "attn.to_out.0": "x_block.attn.proj",
            **dict.fromkeys(("attn2.to_q", "attn2.to_k", "attn2.to_v"), "x_block.attn2.qkv"),
            "attn2.to_out.0": "x_block.attn2.proj",
            "ff.net.0.proj": "x_block.mlp.fc1",
            "ff.net.2": "x_block.mlp.fc2",
            "norm1.linear": "x_block.adaLN_modulation.1",
            **dict.fromkeys(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "context_block.attn.qkv"),
            "attn.to_add_out": "context_block.attn.proj",
            "norm1_context.linear": "context_block.adaLN_modulation.1",
            "ff_context.net.0.proj": "context_block.mlp.fc1",
            "ff_context.net.2": "context_block.mlp.fc2",
        },
    ),
    "qwen": Transformer(
        "QwenImageTransformer2DModel",
        "QwenImagePipeline",
        {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16}
        | {"num_attention_heads": 2, "joint_attention_dim": 24, "axes_dims_rope": (8, 4, 4)},
        {"transformer_blocks": "transformer_blocks"},
        {},
    ),
    "z-image": Transformer(
        "ZImageTransformer2DModel",
        "ZImagePipeline",
        {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
        | {"cap_feat_dim": 24, "axes_dims": [8, 4, 4], "axes_lens": [256, 32, 32]},
        {name: name for name in ("layers", "noise_refiner", "context_refiner")},
        {f"attention.to_{part}": "attention.qkv" for part in "qkv"}
        | {"attention.to_out.0": "attention.out"}
        | {f"feed_forward.w{i}": f"feed_forward.w{i}" for i in (1, 2, 3)}
        | {"adaLN_modulation.0": "adaLN_modulation.0"},
    ),
    "wan": Transformer(
        "WanTransformer3DModel",
        "WanPipeline",
        {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 24}
        | {"freq_dim": 32, "ffn_dim": 48, "num_layers": 2, "rope_max_seq_len": 32},
        {"blocks": "blocks"},
        {
            f"attn{i}.to_{ours}": f"{name}_attn.{theirs}"
            for i, name in ((1, "self"), (2, "cross"))
            for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out.0", "o"))
        }
        | {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"},
    ),
}
"""Each base whose LoRAs are of a transformer."""
_XLABS = {
    "img_attn.qkv": "processor.qkv_lora1",
    "img_attn.proj": "processor.proj_lora1",
    "txt_attn.qkv": "processor.qkv_lora2",
    "txt_attn.proj": "processor.proj_lora2",
    "linear2": "processor.proj_lora",
}


def tiny(base: str, seed: int = 0) -> nn.Module:
    """The tiny model of a base, with random weights."""
    torch.manual_seed(seed)
    model = getattr(diffusers, TRANSFORMERS[base].model)(**TRANSFORMERS[base].config).eval()
    for parameter in model.parameters():  # some are zeros at first, behind which no change would be seen
        nn.init.normal_(parameter, std=0.1)
    return model


def in_blocks(base: str) -> dict[str, tuple[int, int]]:
    """Paths and shapes of the linear layers in the blocks of a tiny model, of which trainers make LoRAs."""
    modules = tiny(base).named_modules()
    found = {path: tuple(module.weight.shape) for path, module in modules if isinstance(module, nn.Linear)}
    return {path: shape for path, shape in found.items() if path.partition(".")[0] in TRANSFORMERS[base].blocks}


def own_names(base: str) -> dict[str, list[str]]:
    """diffusers' path of each layer in the blocks -> itself alone."""
    return {path: [path] for path in in_blocks(base)}


def original_names(base: str) -> dict[str, list[str]]:
    """Name in the base's own code -> the layers that are stacked there, in their order."""
    entry = TRANSFORMERS[base]
    found: dict[str, list[str]] = {}
    for path in in_blocks(base):
        stack, number, end = path.split(".", 2)
        name = entry.ends.get(f"single:{end}" if stack.startswith("single") else end, end)
        found.setdefault(f"{entry.blocks[stack]}.{number}.{name}", []).append(path)
    order = list(dict.fromkeys(end.removeprefix("single:") for end in entry.ends))
    return {name: sorted(paths, key=lambda path: order.index(path.split(".", 2)[2])) for name, paths in found.items()}


def xlabs_names(base: str) -> dict[str, list[str]]:
    """XLabs' names of attention processors in FLUX.1; of single blocks, q, k and v without the MLP."""
    found = {}
    for name, paths in original_names(base).items():
        stack, number, end = name.split(".", 2)
        if end == "linear1":
            found[f"{stack}.{number}.processor.qkv_lora"] = paths[:3]
        elif end in _XLABS:
            found[f"{stack}.{number}.{_XLABS[end]}"] = paths
    return found


def of_transformer(
    base: str,
    rank: int,
    seed: int,
    *,
    names: Callable[[str], dict[str, list[str]]] = own_names,
    beginning: str = "",
    flat: bool = False,
    ends: Ends = PEFT,
    alpha: float = 1.0,
    blocks: bool = False,
    scale: int = 1,
    metadata: Callable[[str, int, float], dict[str, str]] = lambda base, rank, alpha: {},
    sidecar: Callable[[int, float], dict[str, Any]] | None = None,
) -> Written:
    """A file of all linear layers in the blocks of a tiny transformer.

    Parameters
    ----------
    flat
        Names have underscores for dots.
    blocks
        Stacked layers have factors of their own, put together in blocks on the diagonal.
    scale
        All sizes are so many times those of the tiny model.
    """
    tensors: dict[str, Tensor] = {}
    truth = {}
    shapes = {path: (scale * rows, scale * columns) for path, (rows, columns) in in_blocks(base).items()}
    random = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    for name, paths in names(base).items():
        columns = shapes[paths[0]][1]
        updates = {path: (random(rank, columns) / columns, random(shapes[path][0], rank)) for path in paths}
        if blocks:
            down = torch.cat([down for down, _ in updates.values()])
            up = torch.block_diag(*(up for _, up in updates.values()))
        else:
            down = updates[paths[0]][0]
            up = torch.cat([up for _, up in updates.values()])
        stem = beginning + (_flat(name) if flat else name)
        tensors |= {stem + ends.down: down, stem + ends.up: up}
        if ends.alpha:
            tensors[stem + ends.alpha] = torch.tensor(alpha * len(down))
        for path, (own, part) in updates.items():
            truth[f"transformer.{path}"] = Update(own if blocks else down, part, alpha)
    return Written(tensors, metadata(base, rank, alpha), truth, sidecar and sidecar(rank, alpha * rank))


def _transformer_metadata(base: str, rank: int, alpha: float) -> dict[str, str]:
    entries = {f"transformer.{key}": value for key, value in _peft_config(rank, alpha * rank).items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(entries, sort_keys=True)}


_XLABS_ENDS = Ends(".down.weight", ".up.weight")
_flat_alpha = partial(of_transformer, flat=True, ends=KOHYA, alpha=0.5)
_original = partial(of_transformer, names=original_names)

TRANSFORMER_WRITERS: dict[str, tuple[Writer, tuple[str, ...]]] = {
    # huggingface/diffusers save_lora_weights, with and without its metadata; ostris/ai-toolkit for FLUX.1 and SD3
    "diffusers": (partial(of_transformer, beginning="transformer."), tuple(TRANSFORMERS)),
    "diffusers-metadata": (
        partial(of_transformer, beginning="transformer.", alpha=2.0, metadata=_transformer_metadata),
        tuple(TRANSFORMERS),
    ),
    "diffusers-alpha": (
        partial(of_transformer, beginning="transformer.", ends=PEFT_ALPHA, alpha=0.5),
        tuple(TRANSFORMERS),
    ),
    "bare": (of_transformer, tuple(TRANSFORMERS)),
    # huggingface/peft save_pretrained
    "peft": (
        partial(of_transformer, beginning="base_model.model.", alpha=2.0, sidecar=_peft_config),
        tuple(TRANSFORMERS),
    ),
    # kohya-ss/sd-scripts networks/lora_flux.py, lora_sd3.py; kohya-ss/musubi-tuner networks/lora.py
    "kohya": (
        partial(_flat_alpha, names=original_names, beginning="lora_unet_"),
        ("flux1", "chroma", "flux2", "sd35", "wan"),
    ),
    "kohya-blocks": (
        partial(_flat_alpha, names=original_names, beginning="lora_unet_", blocks=True),
        ("flux1", "chroma", "flux2", "sd35", "z-image"),
    ),
    "musubi": (partial(_flat_alpha, beginning="lora_unet_"), ("qwen", "z-image")),
    # Black Forest Labs' and ComfyUI's names; ai-toolkit for FLUX.2 and Wan
    "comfyui": (
        partial(_original, beginning="diffusion_model."),
        ("flux1", "chroma", "flux2", "sd35", "z-image", "wan"),
    ),
    "ai-toolkit": (partial(of_transformer, beginning="diffusion_model."), ("qwen", "z-image")),
    "comfyui-alpha": (
        partial(_original, beginning="diffusion_model.", ends=KOHYA, alpha=0.5),
        ("flux1", "flux2", "z-image", "wan"),
    ),
    # XLabs-AI/x-flux
    "xlabs": (partial(of_transformer, names=xlabs_names, ends=_XLABS_ENDS), ("flux1",)),
    # Nerogar/OneTrainer; bghira/SimpleTuner with LyCORIS
    "onetrainer": (partial(_flat_alpha, beginning="lora_transformer_"), tuple(TRANSFORMERS)),
    "lycoris": (partial(_flat_alpha, beginning="lycoris_"), tuple(TRANSFORMERS)),
}
"""Layout -> its writer, and the bases of which such files exist."""
