"""A GPU gives the same bits from the same seeds, and up to rounding the numbers of a CPU: `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lorarar.diffusion.backbone import Backbone, Conditioning
from lorarar.diffusion.sampling import generate
from lorarar.lora.adapter import Adapter, Factors
from lorarar.merging.hypernet import HyperNetwork
from lorarar.merging.klora import merge as klora
from lorarar.randomness import generator
from lorarar.training import ziplora
from lorarar.training.dreambooth import train_adapter
from lorarar.training.hypernet import Entry, train
from lorarar.training.references import References

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and TEST_GPU=1")
ROOT = Path(__file__).parents[2]
PROMPTS = ["a sks dog", "a car in glowing style"]
IMAGES = torch.rand(2, 3, 64, 64, generator=generator(0)) * 2 - 1


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return Backbone.load(ROOT / "data/pocket/base", request.param)


@pytest.fixture(scope="module")
def adapters() -> list[Adapter]:
    return [Adapter.load(ROOT / f"examples/pocket/{name}.safetensors") for name in ("dog8", "glowing")]


def same(one: dict[str, Factors], other: dict[str, Factors]) -> bool:
    """Of tuples of tensors, too."""
    pairs = [both for path in one for both in zip(one[path], other[path], strict=True)]
    return one.keys() == other.keys() and all(torch.equal(a, b) for a, b in pairs)


def references(backbone: Backbone) -> list[References]:
    return [References.encode(backbone, IMAGES[i : i + 1], PROMPTS[i : i + 1]) for i in (0, 1)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_lora_is_the_same_every_time(backbone, checkpointing):
    def run() -> dict[str, Factors]:
        options = {"rank": 16, "learning_rate": 1e-3, "batch_size": 4, "gradient_checkpointing": checkpointing}
        return train_adapter(backbone, IMAGES, PROMPTS, steps=5, **options).layers

    assert same(run(), run())


def test_coefficients_of_ziplora_are_the_same_every_time(backbone, adapters):
    one, other = (ziplora.optimise(backbone, *adapters, *references(backbone), steps=5) for _ in range(2))
    assert same(one, other)


def test_a_hypernetwork_is_the_same_every_time(backbone, adapters):
    def run() -> tuple[HyperNetwork, list[dict[str, float]]]:
        network = HyperNetwork.for_adapter(adapters[0])
        entries = [[Entry(a, r)] for a, r in zip(adapters, references(backbone), strict=True)]
        return network, train(network, backbone, *entries, steps=5, batch_size=4)

    (one, history), (other, again) = run(), run()
    assert history == again
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_pictures_are_the_same_every_time_and_near_those_of_a_cpu(backbone, adapters):
    def pictures(model: Backbone, of: Adapter | object) -> np.ndarray:
        made = generate(model, of, "a sks dog in glowing style", seeds=[0, 1, 2], steps=10, guidance=1.5)  # type: ignore[arg-type]
        return np.stack(made).astype(float)

    on_cpu = Backbone.load(ROOT / "data/pocket/base", backbone.dtype)
    on_cpu = Backbone(on_cpu.pipeline.to("cpu"))
    for of in (adapters[0], klora(*adapters)):
        made = pictures(backbone, of)
        assert (made == pictures(backbone, of)).all()
        near = 0.1 if backbone.dtype == torch.float32 else 6  # of 255; bfloat16 rounds to 8 bits at every layer
        assert abs(made - pictures(on_cpu, of)).mean() < near


def test_predictions_in_float32_are_those_of_a_cpu(adapters):
    model = Backbone.load(ROOT / "data/pocket/base", torch.float32)
    latents = torch.randn(2, *model.latent_shape, generator=generator(1))
    words = model.encode_prompts(PROMPTS)
    steps = torch.tensor([10, 900])
    exactly = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # else convolutions take 10 bits of 23
    with torch.no_grad(), model.applied(adapters[0]), exactly:
        on_gpu = model.predict(latents.cuda(), steps.cuda(), words).cpu()
    there = Backbone(model.pipeline.to("cpu"))
    with torch.no_grad(), there.applied(adapters[0]):
        on_cpu = there.predict(latents, steps, Conditioning(words.embeds.cpu(), words.pooled.cpu()))
    assert (on_gpu - on_cpu).norm() / on_cpu.norm() < 1e-5
