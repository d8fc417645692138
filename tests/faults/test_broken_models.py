"""Models that break: a loss, an adapter or a judge without numbers is told or counted, never taken for an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lorarar.data.catalog import Catalog
from lorarar.diffusion.backbone import Backbone
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.formats import WRITERS
from lorarar.merging.hypernet import HyperNetwork
from lorarar.scoring.judges import Question, Verdict
from lorarar.scoring.judges.cache import CachedJudge
from lorarar.scoring.judges.verification import VerificationJudge, Verifier
from lorarar.scoring.mars2 import rate
from lorarar.training import ziplora
from lorarar.training.hypernet import Entry, train
from lorarar.training.references import References
from stages import merge

ROOT = Path(__file__).parents[2]
PICTURE = np.zeros((64, 64, 3), np.uint8)


def broken(adapter: Adapter) -> Adapter:
    """The same with one number that is none."""
    path, factors = next(iter(adapter.layers.items()))
    down = factors.down.clone()
    down[0, 0] = torch.nan
    return Adapter(adapter.layers | {path: Factors(down, factors.up)})


def test_a_loss_that_is_no_number_ends_the_training_of_the_hypernetwork(
    tiny: Backbone, adapters: tuple[Adapter, Adapter], references: tuple[References, References]
) -> None:
    content, style = adapters
    network = HyperNetwork.for_adapter(content)
    entries = [Entry(broken(content), references[0])], [Entry(style, references[1])]
    with pytest.raises(UserError, match="hypernetwork's loss is not finite at step 1; lower its learning rate"):
        train(network, tiny, *entries, steps=2)


def test_a_loss_that_is_no_number_ends_ziplora(
    tiny: Backbone, adapters: tuple[Adapter, Adapter], references: tuple[References, References]
) -> None:
    with pytest.raises(UserError, match="ZipLoRA's loss is not finite at step 1; lower its learning rate"):
        ziplora.optimise(tiny, broken(adapters[0]), adapters[1], *references, steps=2)


def test_an_adapter_that_holds_no_numbers_is_not_sampled(
    adapters: tuple[Adapter, Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of a training may be the one that breaks it: no loss is looked at after that."""
    monkeypatch.chdir(tmp_path)
    catalog = Catalog.load(ROOT)
    pair = catalog.subjects["dog8"], catalog.styles["glowing"]
    layers = broken(adapters[0]).layers.items()
    tensors = [WRITERS["diffusers"](f"unet.{path}", factors) for path, factors in layers]
    save_file({key: tensor for of_layer in tensors for key, tensor in of_layer.items()}, "dog8.safetensors")
    adapters[1].save("glowing.safetensors")
    context: Any = SimpleNamespace(
        base="pocket",
        artifacts=Path("artifacts"),
        work=Path(".work/pocket"),
        catalog=catalog,
        params=SimpleNamespace(keep_merged=True, evaluate=SimpleNamespace(methods=["direct"], splits=["test"])),
        knobs=SimpleNamespace(merge={}),
        methods=["direct"],
        pairs=lambda split: [pair],
        evaluated=[pair],
        adapter=lambda entry: Path(f"{entry.name}.safetensors"),
    )
    with pytest.raises(UserError, match=r"direct of dog8\+glowing: layer .* holds NaN or infinity"):
        merge.main(context)
    assert not list(Path("artifacts").rglob("*.safetensors"))


class Mumbling:
    """A judge of few clear words."""

    name = identity = "mumbling"
    prompts = None

    def __init__(self, answers: Sequence[bool | None]) -> None:
        self.answers = list(answers)

    def answer(self, questions: Sequence[Question]) -> list[Verdict]:
        return [Verdict(self.answers.pop(0)) for _ in questions]


def test_an_answer_that_is_neither_is_counted_and_asked_again(tmp_path: Path) -> None:
    judge = Mumbling([None, True, True, None])
    (rating,) = rate(CachedJudge(judge, tmp_path), [PICTURE], [PICTURE, PICTURE + 1], [PICTURE + 2], "oil painting")
    assert (rating.subject.unanswered, rating.style.unanswered) == (1, 0) and not rating.subject.yes
    assert len(judge.answers) == 1
    (rating,) = rate(
        CachedJudge(Mumbling([True]), tmp_path), [PICTURE], [PICTURE, PICTURE + 1], [PICTURE + 2], "oil painting"
    )
    assert rating.right and rating.subject.unanswered == 0, "only what was not answered was asked"


def test_a_verification_network_without_numbers_gives_no_answer() -> None:
    network = Verifier()
    torch.nn.init.constant_(network.head[-1].bias, torch.nan)
    judge = VerificationJudge({"subject": network, "style": network})
    assert judge.answer([Question("subject", PICTURE, PICTURE)]) == [Verdict(None)]
