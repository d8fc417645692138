"""A training that was interrupted, wherever and however often, ends with the very weights of one that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorarar.errors import UserError
from lorarar.training import joint, ziplora
from lorarar.training.checkpoint import Checkpoint, Interrupted
from lorarar.training.dreambooth import train_adapter

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
PROMPTS = ["a sks dog", "a sks dog"]
STEPS = 7
Train = Callable[[Checkpoint | None], list[Tensor]]


@pytest.fixture(params=["adapter", "joint", "ziplora"])
def train(request, tiny, adapters, references) -> Train:
    options = {"steps": STEPS, "learning_rate": 0.01, "batch_size": 2, "seed": 3}

    def run(checkpoint: Checkpoint | None) -> list[Tensor]:
        if request.param == "ziplora":
            fitted = ziplora.optimise(tiny, *adapters, *references, **options, checkpoint=checkpoint)
            return [m for both in fitted.values() for m in both]
        if request.param == "joint":
            both = (IMAGES[:1], PROMPTS[:1], IMAGES[1:], PROMPTS[1:])
            adapter = joint.train(tiny, *both, rank=2, **options, checkpoint=checkpoint)
        else:
            adapter = train_adapter(tiny, IMAGES, PROMPTS, rank=2, **options, checkpoint=checkpoint)
        return [tensor for factors in adapter.layers.values() for tensor in factors]

    return run


def after(calls: int) -> Callable[[], bool]:
    """Says no so often, then yes."""
    left = iter([False] * (calls - 1))
    return lambda: next(left, True)


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_stopped_after_any_step_it_goes_on_to_the_same_weights(train: Train, tmp_path: Path) -> None:
    whole = train(None)
    for calls in (1, 3):
        with pytest.raises(Interrupted, match="keeps its state"):
            train(Checkpoint(tmp_path / "state", stop=after(calls)))
    steps = torch.load(tmp_path / "state", weights_only=True)["step"]
    assert steps == 4, "the second run began where the first one ended"
    assert equal(train(Checkpoint(tmp_path / "state")), whole)


def test_killed_without_warning_it_goes_on_from_its_last_state(train: Train, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill() -> bool:
        raise Killed

    whole = train(None)
    stops = iter([lambda: False] * 5 + [kill])
    with pytest.raises(Killed):
        train(Checkpoint(tmp_path / "state", every=2, stop=lambda: next(stops)()))
    assert torch.load(tmp_path / "state", weights_only=True)["step"] == 4
    assert equal(train(Checkpoint(tmp_path / "state", every=2)), whole)


def test_the_state_of_another_training_or_a_damaged_one_is_refused(tiny, tmp_path: Path) -> None:
    def run(seed: int) -> None:
        checkpoint = Checkpoint(tmp_path / "state", every=1)
        train_adapter(tiny, IMAGES, PROMPTS, rank=2, steps=1, seed=seed, checkpoint=checkpoint)

    run(seed=1)
    with pytest.raises(UserError, match="made with other settings; delete it"):
        run(seed=2)
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:100])
    with pytest.raises(UserError, match="not a state of this training; delete it"):
        run(seed=1)
    assert not hasattr(tiny.unet, "peft_config"), "the base is left as it was"
