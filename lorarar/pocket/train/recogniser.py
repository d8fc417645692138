"""Trains and measures the recogniser."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lorarar.device import best_device
from lorarar.files import write_json
from lorarar.pictures import as_tensor
from lorarar.pocket.recogniser import HEADS, Network, Recogniser
from lorarar.pocket.train.degradations import blurred_and_noisy, warped
from lorarar.pocket.train.judge_datasets import OTHER, UNKNOWN, Workshop
from lorarar.pocket.train.shards import Columns
from lorarar.pocket.train.trainer import fit, generators


def accuracy(recogniser: Recogniser, columns: Columns) -> dict[str, float]:
    """Share of right answers of every head, over the pictures that have that label.

    `family_of_other_looks` is the family's share over pictures in a look of no style of the bank.
    """
    found = recogniser.recognise(columns["image"])
    right = {head: np.array([getattr(one, head) for one in found]) == columns[head] for head in HEADS}
    shares = {head: float(right[head][columns[head] != UNKNOWN].mean()) for head in HEADS}
    unseen = (columns["style"] == OTHER) & (columns["family"] != "plain")
    return shares | {"family_of_other_looks": float(right["family"][unseen].mean())}


def train_recogniser(
    shop: Workshop, out: Path, *, steps: int = 3000, batch: int = 96, count: int = 40000, rate: float = 2e-3
) -> dict[str, float]:
    """Train the recogniser on the bank's truth and the base's distribution; returns held-out accuracies."""
    torch.manual_seed(shop.seed)
    data, held_out = shop.labelled(count), shop.labelled(2000, held_out=shop.degrade)
    names = {head: sorted(set(data[head].tolist()) - {UNKNOWN}) for head in HEADS}
    numbers = {head: {name: number for number, name in enumerate(names[head])} | {UNKNOWN: -100} for head in HEADS}
    labels = {head: torch.tensor([numbers[head][name] for name in data[head].tolist()]) for head in HEADS}
    device = best_device()
    network = Network([len(names[head]) for head in HEADS]).to(device)

    def draw(step: int) -> Sequence[Tensor]:
        rng, generator = generators(shop.seed, step)
        places = rng.integers(len(data["image"]), size=batch)
        pixels = warped(as_tensor(data["image"][places]).to(device), generator)
        return [blurred_and_noisy(pixels, generator), *(labels[head][places].to(device) for head in HEADS)]

    def loss(pixels: Tensor, *answers: Tensor) -> Tensor:
        parts = [
            F.cross_entropy(logits.float(), answer, label_smoothing=0.05)
            for logits, answer in zip(network(pixels), answers, strict=True)
        ]
        return torch.stack(parts).sum()

    checkpoint = shop.work / "recogniser.pt"
    fit(network, draw, loss, name="recogniser", steps=steps, learning_rate=rate, checkpoint=checkpoint)
    network.cpu()
    # Logit adjustment (Menon et al., 2021): all answers become equally likely a priori, also "other", the commonest.
    with torch.no_grad():
        for linear, head in zip(network.heads, HEADS, strict=True):
            known = labels[head][labels[head] >= 0]
            linear.bias -= known.bincount(minlength=len(names[head])).log()  # type: ignore[operator]
    recogniser = Recogniser(network, names)
    recogniser.save(out)
    shares = accuracy(recogniser, held_out)
    write_json(out / "held_out.json", shares)
    print(f"recogniser: {shares}", file=sys.stderr)
    return shares
