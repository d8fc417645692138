"""Degrades renderings to look like generated pictures: VAE, sampler, blur, noise, distorted shapes."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lorarar.device import best_device
from lorarar.errors import UserError
from lorarar.files import sha256
from lorarar.pictures import as_tensor
from lorarar.scoring.images import batches


class Degrade(Protocol):
    """uint8 pictures (n, h, w, 3) and a generator -> uint8 pictures of the same shape; `key` names the kind."""

    key: str

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray: ...


class RoundTrip:
    """Encode and decode pictures with the base's VAE, with some noise on the latents as a sampler leaves it.

    Parameters
    ----------
    folder : the VAE of the base, as diffusers saves it.
    noise : upper end of the latent noise's standard deviation, as a share of each channel's own.
    """

    def __init__(self, folder: Path | str, noise: float = 0.2) -> None:
        from diffusers import AutoencoderKL

        weights = Path(folder) / "diffusion_pytorch_model.safetensors"
        if not weights.is_file():
            raise UserError(f"{weights}: no VAE there; train the base's VAE first")
        self.vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval().to(best_device())
        self.key = sha256(weights)[:12]
        self.noise = noise

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        parts = []
        for batch in batches(images, 32):
            with torch.autocast(self.vae.device.type, torch.bfloat16, enabled=self.vae.device.type == "cuda"):
                latents = self.vae.encode(as_tensor(batch).to(self.vae.device)).latent_dist.mode().float().cpu()
            size = torch.from_numpy(rng.uniform(0, self.noise, (len(batch), 1, 1, 1)).astype(np.float32))
            spread = latents.std((0, 2, 3), keepdim=True)
            noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
            latents = (latents + size * spread * noise).to(self.vae.device)
            with torch.autocast(self.vae.device.type, torch.bfloat16, enabled=self.vae.device.type == "cuda"):
                decoded = self.vae.decode(latents).sample.float()
            parts.append(as_images(decoded))
        return np.concatenate(parts)


class Redrawn:
    """Put noise on a picture's latents and let the base, unprompted, take it out again (SDEdit, Meng et al. 2022).

    The result has the soft shapes and the wavering lines of a generated picture, but shows the same thing in the same
    look.

    Parameters
    ----------
    folder : the base's pipeline.
    depth : the latest timestep of the noise; the start of each picture is drawn uniformly up to it.
    steps : number of steps that remove the noise.
    """

    def __init__(self, folder: Path | str, depth: int = 350, steps: int = 4) -> None:
        from lorarar.diffusion.backbone import Backbone

        self.base = Backbone.load(folder)
        weights = (Path(folder) / part / "diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
        self.key = f"{'-'.join(sha256(path)[:12] for path in weights)}-{depth}-{steps}"
        self.depth, self.steps = depth, steps

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        base, parts = self.base, []
        signal = base.pipeline.scheduler.alphas_cumprod.clone()
        signal[0] = 1.0  # a picture of timestep 0 is clean
        levels = [value.view(-1, 1, 1, 1).to(base.device) for value in (signal.sqrt(), (1 - signal).sqrt())]
        for batch in batches(images, 125):
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            latents = base.encode_images(as_tensor(batch))
            start = torch.randint(1, self.depth + 1, (len(batch),), generator=generator)
            noise = torch.randn(latents.shape, generator=generator).to(base.device)
            nothing = base.encode_nothing()[[0] * len(batch)]
            for left in range(self.steps, 0, -1):
                now, then = (start * level // self.steps for level in (left, left - 1))
                (a, b), (c, d) = ([level[moment] for level in levels] for moment in (now, then))
                if left == self.steps:
                    latents = a * latents + b * noise
                # A deterministic step of DDIM for a model that predicts the velocity.
                velocity = base.predict(latents, now.to(base.device), nothing)
                latents = c * (a * latents - b * velocity) + d * (a * velocity + b * latents)
            parts.append(as_images(base.decode(latents)))
        return np.concatenate(parts)


def as_images(pixels: Tensor) -> np.ndarray:
    """Float (n, 3, h, w) in [-1, 1] -> uint8 pictures (n, h, w, 3)."""
    scaled = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def mostly(degrade: Degrade, images: np.ndarray, rng: np.random.Generator, share: float = 0.8) -> np.ndarray:
    """Degrade a random `share` of the pictures and leave the others as they were drawn."""
    chosen = rng.random(len(images)) < share
    result = images.copy()
    if chosen.any():
        result[chosen] = degrade(images[chosen], rng)
    return result


def blurred_and_noisy(pixels: Tensor, generator: torch.Generator, blur: float = 1.0, noise: float = 0.06) -> Tensor:
    """Mix each picture with its blur, up to `blur`, and add noise of standard deviation up to `noise`."""
    n = len(pixels)
    # Two averages over 2 x 2 make the kernel [1, 2, 1] / 4 in both directions.
    soft = F.avg_pool2d(F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 2, 1), 2, 1)
    device = pixels.device
    pixels = torch.lerp(pixels, soft, blur * torch.rand((n, 1, 1, 1), generator=generator).to(device))
    strength = noise * torch.rand((n, 1, 1, 1), generator=generator)
    return pixels + (strength * torch.randn(pixels.shape, generator=generator)).to(device)


def warped(
    pixels: Tensor, generator: torch.Generator, shift: float = 2.0, scale: float = 0.06, wobble: float = 0.8
) -> Tensor:
    """Move, scale and gently distort each picture; `shift` and `wobble` in pixels, `scale` relative."""
    n, size = len(pixels), pixels.shape[-1]
    affine = torch.zeros(n, 2, 3)
    factor = 1 + scale * (2 * torch.rand(n, generator=generator) - 1)
    affine[:, 0, 0] = affine[:, 1, 1] = factor
    affine[:, :, 2] = shift * (2 / size) * (2 * torch.rand((n, 2), generator=generator) - 1)
    grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    bumps = (
        torch.randn((n, 2, 5, 5), generator=generator)
        * wobble
        * (2 / size)
        * torch.rand((n, 1, 1, 1), generator=generator)
    )
    grid = grid + F.interpolate(bumps, size=(size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(pixels, grid.to(pixels.device), padding_mode="border", align_corners=False)


def mirrored(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror a random half of the pictures."""
    flip = (torch.rand(len(pixels), generator=generator) < 0.5).to(pixels.device)
    return torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)


def recoloured(tensors: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Swap colour channels, the same way in every tensor of the list, in half of the places of the batch.

    Two pictures that agree in colour still agree after both are recoloured alike, so old pairs give new palettes and
    new inks.
    """
    orders = torch.tensor(list(permutations(range(3))))
    n = len(tensors[0])
    chosen = torch.randint(len(orders), (n,), generator=generator) * (torch.rand(n, generator=generator) < 0.5)
    index = orders[chosen][:, :, None, None].to(tensors[0].device)
    return [tensor.gather(1, index.expand(tensor.shape)) for tensor in tensors]
