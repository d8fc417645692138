"""DreamBooth makes an adapter that knows its pictures, the same one every time, and leaves the base alone."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch

from lorarar.errors import UserError
from lorarar.training.dreambooth import train_adapter
from lorarar.training.references import centre_crop

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
PROMPTS = ["a sks dog", "a sks dog"]


def test_adapter_covers_all_attention_projections(tiny):
    adapter = train_adapter(tiny, IMAGES, PROMPTS, rank=3, steps=1)
    expected = {p for p, _ in tiny.unet.named_modules() if p.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))}
    assert adapter.layers.keys() == expected and len(expected) == 56
    assert set(adapter.ranks.values()) == {3}
    assert all(t.dtype == torch.float32 and not t.requires_grad for f in adapter.layers.values() for t in f)


def test_training_lowers_the_loss(tiny):
    losses: list[float] = []
    options = {"rank": 4, "steps": 40, "learning_rate": 1e-2, "batch_size": 4}
    train_adapter(tiny, IMAGES, PROMPTS, **options, progress=lambda step, loss: losses.append(loss))
    assert len(losses) == 40
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_seed_decides_everything_and_global_randomness_is_untouched(tiny):
    def run(seed):
        return train_adapter(tiny, IMAGES, PROMPTS, rank=2, steps=3, learning_rate=1e-3, seed=seed)

    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = run(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    same, other = run(1), run(2)
    path = next(iter(one.layers))
    assert torch.equal(one.layers[path].up, same.layers[path].up)
    assert torch.equal(one.layers[path].down, same.layers[path].down)
    assert not torch.equal(one.layers[path].down, other.layers[path].down)


def test_the_backbone_is_left_as_it_was(tiny):
    before = {key: value.clone() for key, value in tiny.unet.state_dict().items()}
    train_adapter(tiny, IMAGES, PROMPTS, rank=2, steps=2, learning_rate=0.1)
    after = tiny.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert not tiny.unet.training and not any(p.requires_grad for p in tiny.unet.parameters())


def test_trained_adapter_predicts_as_it_did_in_training(tiny):
    """What the hooks of `applied` compute is what peft trained: the next loss agrees."""
    from torch.nn.functional import mse_loss

    from lorarar.randomness import generator
    from lorarar.training.references import References

    losses: list[float] = []
    options = {"rank": 2, "learning_rate": 0.05, "seed": 4}
    train_adapter(tiny, IMAGES, PROMPTS, steps=3, **options, progress=lambda step, loss: losses.append(loss))
    adapter = train_adapter(tiny, IMAGES, PROMPTS, steps=2, **options)
    draw = References.encode(tiny, IMAGES, PROMPTS).draw(tiny, 1, generator(4, 2))
    with torch.no_grad(), tiny.applied(adapter):
        prediction = tiny.predict(draw.latents, draw.timesteps, draw.conditioning)
    assert float(mse_loss(prediction, draw.target)) == pytest.approx(losses[2], rel=1e-4)


def test_gradient_checkpointing_changes_memory_alone(tiny):
    options = {"rank": 2, "steps": 2, "learning_rate": 1e-3}
    plain = train_adapter(tiny, IMAGES, PROMPTS, **options)
    checkpointed = train_adapter(tiny, IMAGES, PROMPTS, **options, gradient_checkpointing=True)
    for path, factors in plain.layers.items():
        torch.testing.assert_close(checkpointed.layers[path].up, factors.up, rtol=1e-3, atol=1e-5)


def test_bfloat16_backbone_trains_float32_factors(tiny_folder):
    from lorarar.diffusion.backbone import Backbone

    adapter = train_adapter(Backbone.load(tiny_folder, torch.bfloat16), IMAGES, PROMPTS, rank=2, steps=2)
    assert all(t.dtype == torch.float32 for f in adapter.layers.values() for t in f)
    assert any(f.up.abs().max() > 0 for f in adapter.layers.values())


def test_a_loss_that_is_no_number_stops_the_run(tiny):
    with pytest.raises(UserError, match="not finite at step 1; lower its learning rate"):
        train_adapter(tiny, IMAGES * float("nan"), PROMPTS, rank=2, steps=2)
    assert not hasattr(tiny.unet, "peft_config")


def test_eight_bit_adam_is_bitsandbytes_own_with_the_same_decay(tiny, monkeypatch):
    made = []

    def adam(parameters, lr, weight_decay):
        made.append((lr, weight_decay))
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)

    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", types.SimpleNamespace(AdamW8bit=adam))
    options = {"rank": 2, "steps": 2, "learning_rate": 0.01}
    eight = train_adapter(tiny, IMAGES, PROMPTS, **options, eight_bit_adam=True)
    plain = train_adapter(tiny, IMAGES, PROMPTS, **options)
    assert made == [(0.01, torch.optim.AdamW([torch.zeros(1)]).defaults["weight_decay"])]
    for path, (down, _) in plain.layers.items():
        torch.testing.assert_close(eight.layers[path].down, down, rtol=1e-4, atol=1e-6)


def test_without_bitsandbytes_that_is_told_before_anything_is_encoded(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(tiny, "encode_images", lambda _: pytest.fail("encoded"))
    with pytest.raises(UserError, match="needs bitsandbytes; `pip install bitsandbytes`"):
        train_adapter(tiny, IMAGES, PROMPTS, eight_bit_adam=True)


def test_pictures_are_fitted_by_their_middle_and_left_alone_where_they_fit():
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, 8:24] = 200
    assert (centre_crop(picture, 16) == 200).all()
    assert (
        centre_crop(picture, 8).shape == (8, 8, 3) and centre_crop(picture, 8).min() > 180
    )  # a black border would show
    square = picture[:, :16]
    assert centre_crop(square, 16) is square
