"""Joint training: one multi-concept DreamBooth LoRA (arXiv 2208.12242) from the pictures of subject and style."""

from __future__ import annotations

import torch

from lorarar.lora.adapter import Adapter


def merge(content: Adapter, style: Adapter, *, adapter: Adapter, dtype: torch.dtype = torch.float32) -> Adapter:
    """The adapter that `lorarar.training.joint.train` made for this very pair; the two others have no part in it."""
    return adapter.to(dtype)
