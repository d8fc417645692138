"""Trains the miniature judges: CLIP, DINO and the verification network, from renderings only.

    python -m lorarar.pocket.train.judges {clip,dino,verification-subject,verification-style,recogniser}

One thread each: two trainings at once finish sooner on two cores than one after the other on both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorarar.device import best_device
from lorarar.errors import UserError
from lorarar.files import atomic, write_json
from lorarar.pictures import as_tensor
from lorarar.pocket.train.degradations import Redrawn, RoundTrip, blurred_and_noisy, mirrored, recoloured, warped
from lorarar.pocket.train.judge_datasets import Workshop
from lorarar.pocket.train.shards import Columns
from lorarar.pocket.train.trainer import fit, generators, whole_files
from lorarar.pocket.world.vocabulary import word_tokenizer
from lorarar.pocket.world.world import World
from lorarar.scoring.judges import Kind
from lorarar.scoring.judges.verification import Verifier, half, save_verifier
from lorarar.scoring.statistics import balanced_accuracy

SIZE = 64
CONTEXT = 24
Answers = Callable[[Columns], list[bool | None]]


# --- verification network -------------------------------------------------------------------------


def pair_views(
    data: Columns, places: np.ndarray, kind: Kind, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """References, tests and labels at `places`, varied in ways that leave the answer as it is."""
    reference, test = (as_tensor(data[key][places]).to(best_device()) for key in ("reference", "test"))
    reference, test = recoloured([reference, test], generator)
    if kind == "subject":
        reference, test = mirrored(reference, generator), mirrored(test, generator)
    else:
        # A style has a direction of strokes and light, so its two pictures may only be mirrored together.
        reference, test = mirrored(torch.cat([reference, test], dim=1), generator).chunk(2, dim=1)
    test = blurred_and_noisy(warped(test, generator), generator)
    return reference, test, torch.from_numpy(data["label"][places]).float().to(reference.device)


def train_verification(
    shop: Workshop,
    kind: Kind,
    out: Path,
    *,
    steps: int = 3000,
    batch: int = 64,
    count: int = 40000,
    rate: float = 2e-3,
) -> dict[str, float]:
    """Train the network of one question and write `<out>/<kind>.safetensors`; returns its held-out accuracies."""
    torch.manual_seed(shop.seed)
    data, network = shop.pairs(kind, count), Verifier().to(best_device())

    def draw(step: int) -> Sequence[Tensor]:
        rng, generator = generators(shop.seed, step)
        return pair_views(data, rng.integers(len(data["label"]), size=batch), kind, generator)

    def loss(reference: Tensor, test: Tensor, label: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(network(reference, test).float(), label)

    fit(
        network, draw, loss, name=f"verification {kind}", steps=steps, learning_rate=rate,
        checkpoint=shop.work / f"verification-{kind}.pt",
    )  # fmt: skip
    save_verifier(network.cpu(), out / f"{kind}.safetensors")

    @torch.inference_mode()
    def answers(pairs: Columns) -> list[bool | None]:
        logits = [network(as_tensor(a), as_tensor(b)) for a, b in in_parts(pairs["reference"], pairs["test"])]
        return [bool(value) for value in torch.cat(logits) > 0]

    return report(shop, kind, out / f"{kind}.json", answers)


def in_parts(*arrays: np.ndarray, size: int = 128) -> list[tuple[np.ndarray, ...]]:
    """Cut several arrays of one length into the same parts."""
    return [tuple(array[start : start + size] for array in arrays) for start in range(0, len(arrays[0]), size)]


def report(shop: Workshop, kind: Kind, path: Path, answers: Answers, count: int = 1000) -> dict[str, float]:
    """Measure a judge and write its figures.

    It is measured on held-out pairs and on the bank's truth, both decoded by the VAE, and on held-out pairs that are
    degraded like its training pairs.
    """
    figures: dict[str, float] = {}
    sets = {"held_out": shop.pairs(kind, count, held_out=shop.degrade), "bank": shop.bank_pairs(kind, count)}
    if shop.practice:
        sets["redrawn"] = shop.pairs(kind, count, held_out=shop.practice)
    for name, pairs in sets.items():
        accuracy = balanced_accuracy(pairs["label"].tolist(), answers(pairs))
        figures |= {f"{name}_{key}": value for key, value in accuracy._asdict().items()}
    write_json(path, figures)
    print(f"{kind}: {figures}", file=sys.stderr)
    return figures


# --- CLIP -----------------------------------------------------------------------------------------


def clip_config(vocabulary: int) -> dict:
    """An open_clip configuration of about a million and a half parameters for 64 x 64 pictures."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {"image_size": SIZE, "layers": [1, 2, 2, 1], "width": 16, "head_width": 64},
            "text_cfg": {
                "context_length": CONTEXT, "vocab_size": vocabulary, "hf_tokenizer_name": "local",
                "width": 96, "heads": 3, "layers": 2,
            },
        },
        "preprocess_cfg": {"size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
    }  # fmt: skip


def train_clip(
    shop: Workshop, out: Path, *, steps: int = 900, batch: int = 128, count: int = 20000, rate: float = 1e-3
) -> None:
    """Train a miniature CLIP on pictures and captions; `out` then loads as `open_clip`'s `local-dir:`.

    Captions repeat, so every picture of the same caption counts as a match.
    """
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(shop.seed)
    data = shop.samples(count)
    prompts = [style.training_prompt for style in shop.world.catalog.styles.values()]
    prompts += [
        text(subject, style)
        for subject in shop.world.catalog.subjects.values()
        for style in shop.world.catalog.styles.values()
        for text in (shop.world.catalog.pair_prompt, shop.world.catalog.class_prompt)
    ]
    tokenizer = word_tokenizer([*data["caption"].tolist(), *prompts])
    config = clip_config(len(tokenizer))
    write_json(out / "open_clip_config.json", config)
    with whole_files(out) as folder:
        tokenizer.save_pretrained(str(folder))
    device = best_device()
    model = open_clip.CLIP(**config["model_cfg"]).to(device)
    tokens = open_clip.get_tokenizer(f"local-dir:{out.resolve()}")(data["caption"].tolist())
    _, caption = np.unique(data["caption"], return_inverse=True)

    def draw(step: int) -> Sequence[Tensor]:
        rng, generator = generators(shop.seed, step)
        places = rng.integers(len(tokens), size=batch)
        views = blurred_and_noisy(warped(as_tensor(data["image"][places]).to(device), generator), generator)
        same = torch.from_numpy(caption[places][:, None] == caption[places][None, :]).float()
        return mirrored(views, generator), tokens[places].to(device), same.to(device)

    def loss(views: Tensor, tokens: Tensor, same: Tensor) -> Tensor:
        image, text, scale = model(views, tokens)
        logits = (scale.clamp(max=50.0) * image @ text.T).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    fit(model, draw, loss, name="clip", steps=steps, learning_rate=rate, checkpoint=shop.work / "clip.pt")
    with atomic(out / "open_clip_model.safetensors") as temporary:
        save_file({name: half(tensor) for name, tensor in model.cpu().state_dict().items()}, temporary)


# --- DINO -----------------------------------------------------------------------------------------


def contrast(first: Tensor, second: Tensor, temperature: float = 0.2) -> Tensor:
    """NT-Xent (SimCLR, Chen et al. 2020): each view must find the other view of its picture among all views."""
    views = F.normalize(torch.cat([first, second]).float(), dim=1)
    n = len(first)
    itself = torch.eye(2 * n, dtype=torch.bool, device=views.device)
    logits = (views @ views.T / temperature).masked_fill(itself, -torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * n, device=views.device).roll(n))


def train_dino(
    shop: Workshop, out: Path, *, steps: int = 600, batch: int = 64, count: int = 20000, rate: float = 1e-3
) -> None:
    """Train a miniature ViT without labels and write it as a transformers folder.

    It stands in DINO's place but is trained by instance discrimination, which needs fewer steps than
    self-distillation; the training head is dropped.
    """
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(shop.seed)
    data = shop.samples(count)
    width = 128
    config = ViTConfig(
        hidden_size=width, num_hidden_layers=4, num_attention_heads=4, intermediate_size=4 * width,
        image_size=SIZE, patch_size=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = ViTModel(config, add_pooling_layer=False)
    head = nn.Sequential(nn.Linear(width, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))

    def view(pixels: Tensor, generator: torch.Generator) -> Tensor:
        moved = warped(mirrored(pixels, generator), generator, shift=4.0, scale=0.2, wobble=1.2)
        tint = 1 + 0.15 * (2 * torch.rand((len(pixels), 3, 1, 1), generator=generator) - 1)
        return blurred_and_noisy((moved * tint.to(moved.device)).clamp(-1, 1), generator)

    def draw(step: int) -> Sequence[Tensor]:
        rng, generator = generators(shop.seed, step)
        pixels = as_tensor(data["image"][rng.choice(len(data["image"]), size=batch, replace=False)]).to(device)
        return [torch.cat([view(pixels, generator), view(pixels, generator)])]

    def loss(views: Tensor) -> Tensor:
        return contrast(*head(model(pixel_values=views).last_hidden_state[:, 0]).chunk(2))

    device = best_device()
    both = nn.ModuleDict({"model": model, "head": head}).to(device)
    fit(both, draw, loss, name="dino", steps=steps, learning_rate=rate, checkpoint=shop.work / "dino.pt")
    size = {"height": SIZE, "width": SIZE}
    processor = ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3)
    with whole_files(out) as folder:
        model.cpu().half().save_pretrained(folder)
        processor.save_pretrained(folder)


# --- command line ---------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Train one judge."""
    parser = argparse.ArgumentParser(prog="python -m lorarar.pocket.train.judges", description=main.__doc__)
    models = ["clip", "dino", "verification-subject", "verification-style", "recogniser"]
    parser.add_argument("model", choices=models)
    parser.add_argument("--root", type=Path, default=Path(), help="folder that holds data/")
    parser.add_argument("--out", type=Path, help="folder of all judges (default: <root>/data/pocket/judges)")
    parser.add_argument("--base", type=Path, help="the base's pipeline (default: <root>/data/pocket/base)")
    parser.add_argument(
        "--work", type=Path, help="renderings and checkpoints (default: <root>/artifacts/pocket/judges)"
    )
    parser.add_argument("--steps", type=int, help="training steps (default: the model's own)")
    parser.add_argument("--count", type=int, help="pictures or pairs to render (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)

    out, base = given.out or given.root / "data/pocket/judges", given.base or given.root / "data/pocket/base"
    shop = Workshop(
        World.load(given.root),
        given.root / "data/prompts.yaml",
        RoundTrip(base / "vae"),
        given.work or given.root / "artifacts/pocket/judges",
        given.seed,
        Redrawn(base),
    )
    options = {key: value for key in ("steps", "count") if (value := getattr(given, key)) is not None}
    if given.model == "clip":
        train_clip(shop, out / "clip", **options)
    elif given.model == "dino":
        train_dino(shop, out / "dino", **options)
    elif given.model == "recogniser":
        from lorarar.pocket.train.recogniser import train_recogniser

        train_recogniser(shop, out / "recogniser", **options)
    else:
        kind: Kind = "subject" if given.model.endswith("subject") else "style"
        train_verification(shop, kind, out / "verification", **options)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted; the same command continues from the last checkpoint")
