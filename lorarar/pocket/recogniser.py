"""The recogniser names noun, style family, subject and style of a picture.

It measures the quality of the base and of the LoRAs while they are made. Unlike the judges, it has seen the bank's own
subjects and styles, so it must never judge a merging method.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lorarar.errors import UserError
from lorarar.files import atomic, write_json
from lorarar.pictures import Picture, as_tensor
from lorarar.scoring.images import batches
from lorarar.scoring.judges.verification import Trunk, half, statistics

HEADS = ("noun", "family", "subject", "style")
"""Questions that the recogniser answers."""


class Network(nn.Module):
    """Trunk, a 4 x 4 map of shape and the statistics of all maps, and a linear head per question."""

    def __init__(self, sizes: Sequence[int], widths: Sequence[int] = (24, 64, 128), width: int = 256) -> None:
        super().__init__()
        self.trunk = Trunk(widths)
        self.shape = nn.Sequential(
            nn.Conv2d(widths[-1], 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten()
        )
        self.join = nn.Sequential(nn.Linear(64 * 16 + 2 * sum(widths), width), nn.ReLU(), nn.Dropout(0.1))
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in sizes)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(n, 3, 64, 64) in [-1, 1] -> logits (n, size) of every head."""
        maps = self.trunk(pixels)
        joined = self.join(torch.cat([self.shape(maps[-1]), statistics(maps)], dim=1))
        return [head(joined) for head in self.heads]


@dataclass(frozen=True)
class Recognition:
    """The recogniser's answers about one picture."""

    noun: str
    family: str
    subject: str
    style: str


class Recogniser:
    """A trained network with the names of its classes, `names[head][i]`."""

    def __init__(self, network: Network, names: dict[str, list[str]]) -> None:
        self.network = network.eval()
        self.names = names

    @classmethod
    def load(cls, folder: Path | str) -> Recogniser:
        """Read `config.json` and `model.safetensors`.

        Raises
        ------
        UserError : a file is missing or does not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["names"]
            network = Network([len(names[head]) for head in HEADS])
            network.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{folder}: cannot be loaded as a recogniser ({reason})") from error
        return cls(network, names)

    def save(self, folder: Path) -> None:
        """Write the weights in fp16 and the names."""
        from safetensors.torch import save_file

        write_json(folder / "config.json", {"model_type": "recogniser", "names": self.names})
        with atomic(folder / "model.safetensors") as temporary:
            save_file({name: half(tensor) for name, tensor in self.network.state_dict().items()}, temporary)

    @torch.inference_mode()
    def recognise(self, images: Sequence[Picture] | np.ndarray, batch_size: int = 128) -> list[Recognition]:
        """One recognition per uint8 picture (64, 64, 3)."""
        found: list[Recognition] = []
        for batch in batches(images, batch_size):
            chosen = [logits.argmax(1).tolist() for logits in self.network(as_tensor(batch))]
            named = [[self.names[head][i] for i in column] for head, column in zip(HEADS, chosen, strict=True)]
            found += [Recognition(*row) for row in zip(*named, strict=True)]
        return found
