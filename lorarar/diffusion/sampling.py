"""Images from a base model, an adapter, a prompt and seeds."""

from __future__ import annotations

import inspect
from contextlib import nullcontext

import numpy as np
import torch

from lorarar.diffusion.backbone import Backbone, Conditioning, LongPrompts, to_images
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter
from lorarar.merging.klora import Schedule


@torch.no_grad()
def generate(
    backbone: Backbone,
    adapter: Adapter | Schedule | None,
    prompt: str,
    *,
    seeds: list[int],
    steps: int = 50,
    guidance: float = 7.5,
    batch_size: int = 4,
    long_prompts: LongPrompts = "cut",
) -> list[np.ndarray]:
    """Sample one image for each seed, with classifier-free guidance and the pipeline's own scheduler.

    Parameters
    ----------
    adapter
        None for the base model only; a schedule is asked in every step.
    guidance
        Weight of the prompt; 1 or less is sampling without guidance, in half the time.
    batch_size
        Images sampled at a time. Each image's noise comes from its own seed, whatever the batch.
    long_prompts
        See `Backbone.encode_prompts`.

    Returns
    -------
    list of uint8 arrays (H, W, 3)
        In the order of `seeds`.

    Raises
    ------
    UserError
        An image is black all over or not of numbers, as they become where a dtype overflows.
    """
    conditioning = backbone.encode_prompts([prompt], long_prompts)
    if guidance > 1:
        conditioning = backbone.encode_nothing().as_long_as(conditioning) + conditioning
    images = []
    schedule = adapter if isinstance(adapter, Schedule) else None
    with backbone.applied(adapter) if isinstance(adapter, Adapter) else nullcontext():
        for start in range(0, len(seeds), batch_size):
            batch = seeds[start : start + batch_size]
            # Row by row: all images without the prompt, then all with it.
            rows = [row for row in range(len(conditioning)) for _ in batch]
            latents = _denoise(backbone, conditioning[rows], batch, steps, guidance, schedule)
            pixels = backbone.decode(latents)
            for seed, image in zip(batch, pixels, strict=True):
                if not image.isfinite().all() or image.max() <= -1:
                    fault = "black" if image.isfinite().all() else "not of numbers"
                    raise UserError(f"{prompt!r}, seed {seed}: the image is {fault}; try dtype float32")
            images += to_images(pixels)
    return images


def _denoise(
    backbone: Backbone,
    conditioning: Conditioning,
    seeds: list[int],
    steps: int,
    guidance: float,
    schedule: Schedule | None,
) -> torch.Tensor:
    scheduler = type(backbone.pipeline.scheduler).from_config(backbone.pipeline.scheduler.config)
    scheduler.set_timesteps(steps, device=backbone.device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = [torch.randn(backbone.latent_shape, generator=generator) for generator in generators]
    latents = torch.stack(noise).to(backbone.device) * scheduler.init_noise_sigma
    # Ancestral samplers draw more noise on the way: from each image's own generator.
    options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}

    copies = len(conditioning) // len(seeds)
    for step, t in enumerate(scheduler.timesteps):
        inputs = scheduler.scale_model_input(torch.cat([latents] * copies), t)
        with backbone.applied(schedule.at(step / steps)) if schedule else nullcontext():
            output = backbone.predict(inputs, t, conditioning)
        if copies == 2:
            without, within = output.chunk(2)
            output = without + guidance * (within - without)
        latents = scheduler.step(output, t, latents, return_dict=False, **options)[0]
    return latents
