"""SDXL's VAE class for small pictures on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers import (
    ModelMixin as ModelMixin,
)  # a pipeline looks for it in the module of a class of ours, to know how to load that
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class PackedAutoencoderKL(AutoencoderKL):
    """An AutoencoderKL that hands out 2 x 2 blocks of its latents as channels.

    Pixels (B, 3, H, W) <-> latents (B, 4 * latent_channels, H / 8, W / 8) for three levels of blocks. The UNet, whose
    cost goes with the area of the latents, is a third faster for it, and attention acts where details are drawn.
    """

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        posterior = super().encode(x).latent_dist
        moments = torch.cat([pixel_unshuffle(posterior.mean, 2), pixel_unshuffle(posterior.logvar, 2)], 1)
        packed = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=packed) if return_dict else (packed,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> Any:
        sample = super().decode(pixel_shuffle(z, 2)).sample
        return DecoderOutput(sample=sample) if return_dict else (sample,)
