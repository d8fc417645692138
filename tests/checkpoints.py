"""Tiny checkpoints of diffusers' own UNet in the layouts that people have, and LoRAs of all their layers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from loaders import original
from safetensors.torch import save_file
from torch import Tensor, nn

from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.checkpoint_file import Checkpoint

WIDTH = 32  # of the text encoders


@cache
def unet():
    """A UNet with the blocks of SDXL, 32 to 64 wide, one transformer block in each attention."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        use_linear_projection=True,
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
        norm_num_groups=16,
    )


def modules() -> dict[str, nn.Module]:
    """The UNet's linear layers and convolutions."""
    return {path: module for path, module in unet().named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}


def weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The UNet's tensors by diffusers' keys."""
    return {key: tensor.to(dtype).clone() for key, tensor in unet().state_dict().items()}


def encoder(seed: int) -> dict[str, Tensor]:
    """Two layers of a CLIP text encoder by diffusers' keys."""
    random = torch.Generator().manual_seed(seed)
    shapes = {f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in ("q", "k", "v", "out")}
    shapes |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
    return {
        f"text_model.encoder.layers.{i}.{name}.weight": torch.randn(shape, generator=random) / 8
        for i in range(2)
        for name, shape in shapes.items()
    }


def single_file(unet: dict[str, Tensor], first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint of SDXL as Stability's code names them."""
    names = original("sdxl")
    found = {}
    for key, tensor in unet.items():
        path, _, end = key.rpartition(".")
        found[f"model.diffusion_model.{names.get(path, f'norms.{path}')}.{end}"] = tensor
    found |= {f"conditioner.embedders.0.transformer.{key}": tensor for key, tensor in first.items()}
    for i in range(2):
        ours, theirs = f"text_model.encoder.layers.{i}", f"conditioner.embedders.1.model.transformer.resblocks.{i}"
        fused = [second[f"{ours}.self_attn.{part}_proj.weight"] for part in "qkv"]
        found[f"{theirs}.attn.in_proj_weight"] = torch.cat(fused)
        found[f"{theirs}.attn.out_proj.weight"] = second[f"{ours}.self_attn.out_proj.weight"]
        found[f"{theirs}.mlp.c_fc.weight"] = second[f"{ours}.mlp.fc1.weight"]
        found[f"{theirs}.mlp.c_proj.weight"] = second[f"{ours}.mlp.fc2.weight"]
    found["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(7)[None]
    found["first_stage_model.decoder.conv_in.weight"] = torch.ones(4, 4, 3, 3)
    return found


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, {"format": "pt", "note": "kept"})
    return path


def pipeline(folder: Path) -> Path:
    """A folder of diffusers' with a sharded UNet, both text encoders and a VAE."""
    unet().save_pretrained(folder / "unet", max_shard_size="400KB")
    for name, seed in (("text_encoder", 1), ("text_encoder_2", 2)):
        write(folder / name / "model.safetensors", encoder(seed))
    write(folder / "vae" / "diffusion_pytorch_model.safetensors", {"encoder.conv_in.weight": torch.ones(4, 4, 3, 3)})
    (folder / "model_index.json").write_text("{}")
    return folder


def lora(rank: int, seed: int, scale: float = 0.1, encoders: bool = True) -> Adapter:
    """A LoRA of all linear layers and convolutions, and of both text encoders, with random factors."""
    random = torch.Generator().manual_seed(seed)

    def factors(shape: torch.Size) -> Factors:
        down, up = (rank, *shape[1:]), (shape[0], rank, *(1 for _ in shape[2:]))
        return Factors(*(torch.randn(size, generator=random) * scale for size in (down, up)))

    layers, others = {}, {}
    for path, module in modules().items():
        if isinstance(module, nn.Linear):
            layers[path] = factors(module.weight.shape)
        else:
            others[f"unet.{path}"] = factors(module.weight.shape)
    for name in ("text_encoder", "text_encoder_2") if encoders else ():
        for key, tensor in encoder(0).items():
            others[f"{name}.{key.removesuffix('.weight')}"] = factors(tensor.shape)
    return Adapter(layers, {"ss_network_dim": str(rank)}, others)


def dense(checkpoint: Path) -> dict[str, Tensor]:
    """Layer -> its weight as a matrix, in float64."""
    found = Checkpoint.open(checkpoint)
    return {layer: found.weight(layer).double().flatten(1) for layer in found.layers}


def update(factors: Factors) -> Tensor:
    """dW (m_out, n_in) in float64."""
    return factors.matrix.up.double() @ factors.matrix.down.double()
