"""Trains one multi-concept DreamBooth LoRA (arXiv 2208.12242) on the pictures of subject and style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorarar.diffusion.backbone import Backbone
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter
from lorarar.training.dreambooth import train_adapter


def train(
    backbone: Backbone,
    content_images: Tensor,
    content_prompts: Sequence[str],
    style_images: Tensor,
    style_prompts: Sequence[str],
    **training: Any,
) -> Adapter:
    """Train one LoRA on both concepts, each picture with its own prompt.

    Batches are mixed. Pictures of the concept that has fewer are repeated until each concept is half of what is
    drawn from.

    Parameters
    ----------
    content_images, style_images
        (N_c, 3, H, W) and (N_s, 3, H, W) in [-1, 1].
    content_prompts, style_prompts
        One for each picture.
    training
        Options of `lorarar.training.dreambooth.train_adapter`.

    Raises
    ------
    UserError
        A concept has no pictures, or not one prompt for each, or the loss stopped being a number.
    """
    for images, prompts in ((content_images, content_prompts), (style_images, style_prompts)):
        if not len(images) or len(images) != len(prompts):
            raise UserError(f"{len(images)} reference pictures with {len(prompts)} prompts: give one prompt to each")
    each = math.lcm(len(content_images), len(style_images))
    of_content, of_style = each // len(content_images), each // len(style_images)
    return train_adapter(
        backbone,
        torch.cat([content_images] * of_content + [style_images] * of_style),
        [*content_prompts] * of_content + [*style_prompts] * of_style,
        **training,
    )
