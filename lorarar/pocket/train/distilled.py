"""Distils a lighter base from the miniature SDXL, as KOALA (arXiv 2312.04005) was from SDXL.

Its UNet has no middle block and fewer transformer layers. VAE, text encoders and the world are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorarar.diffusion.backbone import Backbone, Conditioning
from lorarar.pocket.train.base import encode, lesson, read_corpus, render_corpus
from lorarar.pocket.train.trainer import fit

HELD = 256  # pictures that the student is not trained on
PROMPTS = 500  # encoded at a time


def cut(teacher: Any) -> Any:
    """A UNet with the teacher's weights, but no middle block, and one transformer in each up block instead of two."""
    from diffusers import UNet2DConditionModel

    fewer = {"mid_block_type": None, "reverse_transformer_layers_per_block": [[1, 0], [1, 0]], "_name_or_path": ""}
    student = UNet2DConditionModel.from_config({**teacher.config, **fewer})
    weights = teacher.state_dict()
    student.load_state_dict({key: weights[key] for key in student.state_dict()})
    return student


def self_attention(unet: nn.Module) -> dict[str, Tensor]:
    """Outputs of all self-attentions by their paths: a dictionary that every pass of the UNet fills again."""
    outputs: dict[str, Tensor] = {}
    for path, module in unet.named_modules():
        if path.endswith(".attn1"):
            module.register_forward_hook(lambda _, __, output, path=path: outputs.update({path: output}))
    return outputs


def train(work: Path, teacher: Path, steps: int, batch: int = 64) -> None:
    """Distil `work/base/unet` from the teacher's: its own task, and the teacher's output and self-attention."""
    pictures, labels = read_corpus(work / "corpus")
    guide = Backbone.load(teacher, torch.float32)
    latents = encode(guide.vae, pictures).to(torch.float16)
    captions = sorted({row[0] for row in labels})
    place = {caption: number for number, caption in enumerate(captions)}
    which = torch.tensor([place[row[0]] for row in labels])
    parts = [guide.encode_prompts(captions[i : i + PROMPTS]) for i in range(0, len(captions), PROMPTS)]
    all_embeds, all_pooled = (torch.cat([getattr(part, name) for part in parts]).cpu() for name in ("embeds", "pooled"))

    student = copy(guide)
    student.unet = cut(guide.unet).to(guide.device)
    theirs, ours = self_attention(guide.unet), self_attention(student.unet)

    def shown(rows: Tensor, noise: Tensor, t: Tensor, keep: Tensor) -> list[Tensor]:
        embeds, pooled = all_embeds[which[rows]] * keep.view(-1, 1, 1), all_pooled[which[rows]] * keep.view(-1, 1)
        return [tensor.to(guide.device) for tensor in (latents[rows].float(), noise, t, embeds, pooled)]

    def draw(step: int) -> Sequence[Tensor]:
        rows, *others = lesson(len(latents) - HELD, batch, torch.Generator().manual_seed(step))
        return shown(rows + HELD, *others)

    def loss(x: Tensor, noise: Tensor, t: Tensor, embeds: Tensor, pooled: Tensor) -> Tensor:
        given = guide.add_noise(x, noise, t), t, Conditioning(embeds, pooled)
        with torch.no_grad():
            expected = guide.predict(*given)
        v = student.predict(*given)
        # Relative to the teacher's variance, which differs a lot from layer to layer.
        features = [F.mse_loss(ours[path], theirs[path]) / theirs[path].var() for path in ours]
        return F.mse_loss(v, guide.target(x, noise, t)) + F.mse_loss(v, expected) + torch.stack(features).mean()

    # float32 takes a CPU two thirds of bfloat16's time.
    fit(
        student.unet, draw, loss, name="light unet", steps=steps, learning_rate=1e-3, weight_decay=0.01, warmup=50,
        checkpoint=work / "unet.pt", bf16=False,
    )  # fmt: skip
    _, *others = lesson(HELD, HELD, torch.Generator().manual_seed(0))
    x, noise, t, embeds, pooled = shown(torch.arange(HELD), *others)
    given = guide.add_noise(x, noise, t), t, Conditioning(embeds, pooled)
    with torch.no_grad():
        errors = [float(F.mse_loss(one.predict(*given), guide.target(x, noise, t))) for one in (student, guide)]
    print(f"light unet: error {errors[0]:.4f} on {HELD} held-out pictures, its teacher's {errors[1]:.4f}")
    student.unet.to(torch.float16).save_pretrained(work / "base" / "unet")


def make(root: Path, teacher: Path, work: Path, *, pictures: int, unet_steps: int, workers: int) -> Path:
    """Draw a corpus and distil the UNet on it; returns the folder of the UNet. Finished parts are kept in `work`.

    Parameters
    ----------
    teacher : pipeline folder.
    """
    work.mkdir(parents=True, exist_ok=True)
    render_corpus(root, work / "corpus", pictures, workers)
    if not (work / "base" / "unet" / "config.json").exists():
        train(work, teacher, unet_steps)
    return work / "base"
