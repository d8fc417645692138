"""The verification network: two small siamese networks, one per question, trained on the miniature world.

It is not a language model and reads no prompt: one network is trained to answer "same subject as the reference?",
the other "same style as the example?". It has the same interface as the LLaVA critic.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorarar.errors import UserError, first_line
from lorarar.files import atomic, folder_sha256, write_json
from lorarar.pictures import as_tensor
from lorarar.scoring.images import batches
from lorarar.scoring.judges import JudgePrompts, Kind, Question, Verdict

KINDS: tuple[Kind, Kind] = ("subject", "style")


def _convolution(width_in: int, width: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width, kernel, stride, padding=(kernel - 1) // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width))


class Residual(nn.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width)
        self.second = _convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class Trunk(nn.Module):
    """Feature maps at 32 x 32, 16 x 16 and 8 x 8 of 64 x 64 pictures; its early strides make it fast on a CPU."""

    def __init__(self, widths: Sequence[int] = (24, 64, 128)) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.fine = _convolution(3, fine, kernel=4, stride=2)
        self.middle = nn.Sequential(_convolution(fine, middle, stride=2), nn.ReLU(), Residual(middle))
        self.coarse = nn.Sequential(_convolution(middle, coarse, stride=2), nn.ReLU(), Residual(coarse))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = F.relu(self.fine(x))
        middle = self.middle(fine)
        return fine, middle, self.coarse(middle)


def statistics(maps: Sequence[Tensor]) -> Tensor:
    """Mean and spread of every channel of every map, (n, 2 * channels): contents of a picture without their places."""
    parts = []
    for features in maps:
        variance, mean = torch.var_mean(features, dim=(2, 3), correction=0)
        parts += [mean, (variance + 1e-5).sqrt()]
    return torch.cat(parts, dim=1)


class Verifier(nn.Module):
    """Network for the logit of "yes" for a reference and a test picture.

    Both pass the same trunk. They are compared by the statistics of their features (ground, inks, texture), and cell by
    cell at 8 x 8 (shape). There the reference is also mirrored, since a subject may face either way.
    """

    def __init__(self, widths: Sequence[int] = (24, 64, 128), width: int = 128) -> None:
        super().__init__()
        self.sizes = {"widths": list(widths), "width": width}
        self.trunk = Trunk(widths)
        self.summary = nn.Linear(2 * sum(widths), width)
        self.compare = nn.Sequential(
            _convolution(4 * widths[-1], width, kernel=1), nn.ReLU(),
            _convolution(width, width, stride=2), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(4 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, reference: Tensor, test: Tensor) -> Tensor:
        """(n, 3, 64, 64) twice, in [-1, 1] -> (n,) logits."""
        maps = self.trunk(torch.cat([reference, test]))
        summary_reference, summary_test = self.summary(statistics(maps)).chunk(2)
        at_reference, at_test = maps[-1].chunk(2)
        # One batch holds the reference and its mirror image; the better match counts.
        facing = torch.cat([at_reference, at_reference.flip(-1)])
        twice = torch.cat([at_test, at_test])
        relation = self.compare(torch.cat([facing, twice, (facing - twice).abs(), facing * twice], dim=1))
        shape = torch.maximum(*relation.chunk(2))
        matter = [(summary_reference - summary_test).abs(), summary_reference * summary_test]
        return self.head(torch.cat([shape.mean((2, 3)), shape.amax((2, 3)), *matter], dim=1)).squeeze(1)


class VerificationJudge:
    """Judge that asks the verification networks; it says yes if the probability is above one half.

    It was trained on pictures of `size` x `size` pixels and reads no prompts.
    """

    name = "verification"
    size = 64
    prompts = None

    def __init__(self, networks: dict[Kind, Verifier], device: str = "cpu", folder: Path | None = None) -> None:
        self.networks = {kind: network.to(device).eval() for kind, network in networks.items()}
        self.device = device
        self.folder = folder

    @property
    def identity(self) -> str:
        """Name and checksum of the weights."""
        if self.folder is None:
            raise ValueError("networks that were not loaded have no identity; give them their folder")
        return f"{self.name} sha256:{folder_sha256(self.folder)}"

    @classmethod
    def load(cls, folder: Path | str, prompts: JudgePrompts | None = None, device: str = "cpu") -> VerificationJudge:
        """Loads `config.json` and `{subject,style}.safetensors`; the prompts are not used.

        Raises
        ------
        UserError : a file is missing or does not fit.
        """
        folder = Path(folder)
        return cls({kind: load_verifier(folder / f"{kind}.safetensors") for kind in KINDS}, device, folder)

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question], batch_size: int = 64) -> list[Verdict]:
        """Gives one verdict per question, in order."""
        verdicts: list[Verdict | None] = [None] * len(questions)
        for kind, network in self.networks.items():
            places = [place for place, question in enumerate(questions) if question.kind == kind]
            for batch in batches(places, batch_size):
                reference = as_tensor([questions[place].reference for place in batch]).to(self.device)
                test = as_tensor([questions[place].test for place in batch]).to(self.device)
                probabilities = network(reference, test).float().sigmoid().tolist()
                for place, probability in zip(batch, probabilities, strict=True):
                    known = isfinite(probability)  # else the network is broken, which is no answer
                    verdicts[place] = Verdict(probability > 0.5, probability) if known else Verdict(None)
        return [verdict for verdict in verdicts if verdict is not None]


def save_verifier(network: Verifier, path: Path | str) -> None:
    """Writes one network in fp16; config.json in its folder names the judge and the networks' widths."""
    from safetensors.torch import save_file

    path = Path(path)
    write_json(path.parent / "config.json", {"model_type": "verification", **network.sizes})
    with atomic(path) as temporary:
        save_file({name: half(tensor) for name, tensor in network.state_dict().items()}, temporary)


def half(tensor: Tensor) -> Tensor:
    """Converts floating-point tensors to fp16, as shipped; counters stay as they are."""
    return tensor.detach().cpu().contiguous().to(torch.float16 if tensor.is_floating_point() else tensor.dtype)


def load_verifier(path: Path | str) -> Verifier:
    """Reads one network saved by `save_verifier`, in fp32.

    Raises
    ------
    UserError : a file is missing or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    try:
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        network = Verifier(config["widths"], config["width"])
        network.load_state_dict(load_file(path))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be loaded as a verification network ({first_line(error)})") from error
    return network
