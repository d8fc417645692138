"""DINO: mean cosine similarity of a self-supervised ViT's CLS features, image against subject references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from lorarar.errors import UserError
from lorarar.pictures import Picture
from lorarar.scoring.images import as_pil, batches, mean_cosine
from lorarar.scoring.weights import checkpoint, reason


class Dino:
    """A transformers vision transformer (ViT as in DINO, or DINOv2) with its image processor.

    Parameters
    ----------
    model, processor : a model whose `last_hidden_state[:, 0]` is the CLS feature, and its image processor.
    device : device of the model.
    source : folder of the model, or its name on the hub.
    """

    def __init__(self, model: Any, processor: Any, device: str = "cpu", source: Path | str | None = None) -> None:
        self.model = model.to(device).eval()
        self.processor = processor
        self.device = device
        self.source = source

    @classmethod
    def load(cls, name: Path | str, device: str = "cpu", *, download: bool = False) -> Dino:
        """Loads a local folder, or a model of the hub by its name.

        Parameters
        ----------
        name : a folder, or `facebook/dino-vits16` (as in ImagenHub), `facebook/dino-vits8` or `facebook/dinov2-small`
            (both as in DreamBench++).
        device : device of the model.
        download : download a hub model that is not on this machine yet.

        Raises
        ------
        UserError : it cannot be loaded, or is not on this machine and may not be downloaded.
        """
        from safetensors import SafetensorError
        from transformers import AutoImageProcessor, AutoModel

        try:
            processor = AutoImageProcessor.from_pretrained(name, local_files_only=not download)
            model = AutoModel.from_pretrained(name, dtype=torch.float32, local_files_only=not download)
        except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
            why = reason(error, name, download)
            raise UserError(f"{name}: transformers cannot load this DINO model {why}") from error
        return cls(model, processor, device, name)

    def describe(self) -> dict[str, Any]:
        """Describes checkpoint and preprocessing for the results: published scores differ in both."""
        return {
            "model": self.source and str(self.source),
            "checkpoint": checkpoint(self.source, self.model),
            "preprocessing": self.processor.to_dict(),
        }

    @torch.inference_mode()
    def images(self, images: Sequence[Picture], batch_size: int = 64) -> torch.Tensor:
        """(n, d) unit CLS features of pictures, float32 on the CPU."""
        parts = []
        for batch in batches(images, batch_size):
            pixels = self.processor(images=as_pil(batch), return_tensors="pt")["pixel_values"].to(self.device)
            features = self.model(pixel_values=pixels).last_hidden_state[:, 0]
            parts.append(torch.nn.functional.normalize(features.float(), dim=-1).cpu())
        return torch.cat(parts)


def dino(model: Dino, images: Sequence[Picture], references: Sequence[Picture]) -> torch.Tensor:
    """(n,) mean cosine similarity of each image to the subject reference pictures."""
    return mean_cosine(model.images(images), model.images(references))
