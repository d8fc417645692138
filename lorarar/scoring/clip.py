"""CLIP-I and CLIP-T through open_clip.

CLIP-I is the mean cosine similarity between a generated image and the *style* references (the pairing of
Table A2 of LoRA.rar; DreamBooth pairs it with the subject), CLIP-T the cosine similarity between an image and
its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorarar.errors import UserError
from lorarar.files import folder_sha256, sha256
from lorarar.pictures import Picture
from lorarar.scoring.images import as_pil, batches, mean_cosine
from lorarar.scoring.weights import offline_unless, reason


class Clip:
    """An open_clip model with its preprocessing and tokenizer; features are unit vectors.

    Parameters
    ----------
    model, preprocess, tokenizer : what `open_clip.create_model_and_transforms` and `open_clip.get_tokenizer`
        return.
    device : device of the model.
    source : name or folder of the model, and tag or file of its weights, as given to `load`.
    """

    def __init__(
        self,
        model: Any,
        preprocess: Any,
        tokenizer: Any,
        device: str = "cpu",
        source: tuple[Path | str, str | None] | None = None,
    ) -> None:
        self.model = model.to(device).eval()
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.device = device
        self.source = source

    @classmethod
    def load(
        cls, name: Path | str, pretrained: str | None = None, device: str = "cpu", *, download: bool = False
    ) -> Clip:
        """Loads a folder (`open_clip_config.json` and weights), or a model that open_clip knows by name and tag.

        Parameters
        ----------
        name : a local folder, or an open_clip model name such as `ViT-B-32`.
        pretrained : tag or file of the weights of a named model, such as `openai`; not used for a folder.
        device : device of the model.
        download : download weights that are not on this machine yet.

        Raises
        ------
        UserError : the folder is missing or broken, open_clip does not know the name or the tag, or the weights are
            not on this machine and may not be downloaded.
        """
        import open_clip
        from safetensors import SafetensorError

        folder = Path(name)
        if folder.is_dir():
            if not list(folder.glob("open_clip_*.safetensors")):
                raise UserError(f"{folder}: no open_clip_model.safetensors; restore the folder from git")
            identifier, pretrained = f"local-dir:{folder.resolve()}", None
        elif pretrained is None:
            raise UserError(
                f"{name}: no such CLIP folder; give a folder, or an open_clip model name with its weights tag"
            )
        else:
            identifier = str(name)
        published = open_clip.get_pretrained_cfg(identifier.replace("/", "-"), pretrained or "")
        try:
            with offline_unless(download):
                model, _, preprocess = open_clip.create_model_and_transforms(
                    identifier,
                    pretrained=pretrained,
                    # open_clip only warns where weights were trained with another activation than the name implies:
                    # "ViT-B-32" with "openai", the pair that every paper names, is such a case.
                    force_quick_gelu=published.get("quick_gelu", False),
                )
                tokenizer = open_clip.get_tokenizer(identifier)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UserError(f"{name}: open_clip cannot load it {reason(error, name, download)}") from error
        return cls(model, preprocess, tokenizer, device, (name, pretrained))

    def describe(self) -> dict[str, Any]:
        """Describes checkpoint and preprocessing for the results: published scores differ in both."""
        name, pretrained = self.source or (None, None)
        if name is not None and Path(name).is_dir():
            pretrained = f"sha256:{folder_sha256(name)}"
        elif pretrained is not None and Path(pretrained).is_file():
            pretrained = f"sha256:{sha256(pretrained)}"
        return {
            "model": name and str(name),
            "checkpoint": pretrained,
            "preprocessing": dict(self.model.visual.preprocess_cfg),
        }

    @torch.inference_mode()
    def images(self, images: Sequence[Picture], batch_size: int = 64) -> torch.Tensor:
        """(n, d) unit features of pictures, float32 on the CPU."""
        parts = []
        for batch in batches(images, batch_size):
            pixels = torch.stack([self.preprocess(image) for image in as_pil(batch)]).to(self.device)
            parts.append(self.model.encode_image(pixels, normalize=True).float().cpu())
        return torch.cat(parts)

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        """(n, d) unit features of prompts, float32 on the CPU."""
        parts = []
        for batch in batches(prompts, batch_size):
            tokens = self.tokenizer(list(batch)).to(self.device)
            parts.append(self.model.encode_text(tokens, normalize=True).float().cpu())
        return torch.cat(parts)


def clip_i(clip: Clip, images: Sequence[Picture], references: Sequence[Picture]) -> torch.Tensor:
    """(n,) mean cosine similarity of each image to the (style) reference pictures."""
    return mean_cosine(clip.images(images), clip.images(references))


def clip_t(clip: Clip, images: Sequence[Picture], prompt: str) -> torch.Tensor:
    """(n,) cosine similarity of each image to the one prompt all of them were made from."""
    return mean_cosine(clip.images(images), clip.texts([prompt]))
