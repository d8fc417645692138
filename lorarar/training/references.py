"""Reference pictures as training sees them: encoded once, then drawn from with fresh noise in every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter
from lorarar.pictures import Picture

if TYPE_CHECKING:
    from lorarar.diffusion.backbone import Backbone, Conditioning


def centre_crop(picture: Picture, resolution: int) -> Picture:
    """The picture's middle as a square of this many pixels a side; as it is, if that is what it is."""
    if picture.shape[:2] == (resolution, resolution):
        return picture
    return np.asarray(ImageOps.fit(Image.fromarray(picture), (resolution, resolution), Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class Draw:
    """Noisy latents of some reference pictures: x and p of Eq. 3."""

    latents: Tensor  # (B, C, h, w), noisy
    timesteps: Tensor  # (B,)
    conditioning: Conditioning  # B rows
    target: Tensor  # (B, C, h, w): what a perfect model would predict

    def __getitem__(self, rows: slice) -> Draw:
        """Some rows."""
        return Draw(self.latents[rows], self.timesteps[rows], self.conditioning[rows], self.target[rows])


@dataclass(frozen=True)
class References:
    """Pictures with their prompts."""

    latents: Tensor  # (N, C, h, w), clean
    conditioning: Conditioning  # N rows

    @classmethod
    def encode(cls, backbone: Backbone, images: Tensor, prompts: Sequence[str]) -> References:
        """Encode pictures (N, 3, H, W) in [-1, 1] and their N prompts."""
        if not len(images) or len(images) != len(prompts):
            raise UserError(f"{len(images)} reference pictures with {len(prompts)} prompts: give one prompt to each")
        return cls(backbone.encode_images(images), backbone.encode_prompts(list(prompts)))

    def save(self, path: Path) -> None:
        """Write to a file for `load`, in this run: it is no format to keep."""
        torch.save([self.latents, self.conditioning.embeds, self.conditioning.pooled], path)

    @classmethod
    def load(cls, path: Path, backbone: Backbone) -> References:
        """Read what `save` wrote, onto the backbone's device."""
        from lorarar.diffusion.backbone import Conditioning

        latents, *conditioning = torch.load(path, map_location=backbone.device, weights_only=True)
        return cls(latents, Conditioning(*conditioning))

    def draw(self, backbone: Backbone, size: int, random: torch.Generator) -> Draw:
        """`size` pictures, drawn with replacement, at uniform timesteps with Gaussian noise."""
        index = torch.randint(len(self.latents), (size,), generator=random)
        timesteps = torch.randint(backbone.training_timesteps, (size,), generator=random)
        latents = self.latents[index.to(self.latents.device)]
        noise = torch.randn(latents.shape, generator=random)
        timesteps, noise = timesteps.to(latents.device), noise.to(latents.device)
        return Draw(
            backbone.add_noise(latents, noise, timesteps),
            timesteps,
            self.conditioning[index],
            backbone.target(latents, noise, timesteps),
        )


@dataclass(frozen=True)
class Entry:
    """A member of the LoRA bank: an adapter and the pictures it was trained on."""

    adapter: Adapter
    references: References
