"""The merging loss is Eq. 3, term by term."""

from __future__ import annotations

import pytest
import torch

from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter
from lorarar.merging import columns
from lorarar.randomness import generator
from lorarar.training.objective import MergingLoss, merging_loss
from lorarar.training.references import References


def evaluate(*arguments, **options) -> MergingLoss:
    with merging_loss(*arguments, **options) as loss:
        return loss


@pytest.fixture
def setting(tiny, adapters, references):
    content, style = adapters
    m = {
        path: (torch.full((f.down.shape[1],), 0.7), torch.full((f.down.shape[1],), -0.4))
        for path, f in content.layers.items()
    }
    draws = [reference.draw(tiny, 3, generator(0, i)) for i, reference in enumerate(references)]
    return tiny, content, style, m, draws


def differences(backbone, content, style, merged, draws):
    """(D + L_m)(x, p) - (D + L)(x, p) for both, one image at a time."""
    for adapter, draw in zip((content, style), draws, strict=True):
        rows = []
        for i in range(3):
            x = draw.latents[i : i + 1], draw.timesteps[i : i + 1], draw.conditioning[i : i + 1]
            with backbone.applied(merged):
                prediction = backbone.predict(*x)
            with backbone.applied(adapter):
                rows.append(prediction - backbone.predict(*x))
        yield torch.cat(rows)


def test_default_is_the_papers_equation(setting):
    backbone, content, style, m, draws = setting
    merged = columns.merge(content, style, m)
    loss = evaluate(backbone, content, style, merged, m, *draws, weight=0.01)
    on_content, on_style = differences(backbone, content, style, merged, draws)
    torch.testing.assert_close(loss.content, torch.stack([d.norm() for d in on_content]).mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(loss.style, torch.stack([d.norm() for d in on_style]).mean(), rtol=1e-4, atol=0)
    overlap = sum(0.7 * 0.4 * len(m_c) for m_c, _ in m.values())
    torch.testing.assert_close(loss.orthogonality, torch.tensor(overlap))
    torch.testing.assert_close(loss.total, loss.content + loss.style + 0.01 * loss.orthogonality)


def test_terms_of_the_release(setting):
    backbone, content, style, m, draws = setting
    merged = columns.merge(content, style, m)
    loss = evaluate(backbone, content, style, merged, m, *draws, weight=0.5, fidelity="mse", orthogonality="cosine")
    on_content, on_style = differences(backbone, content, style, merged, draws)
    torch.testing.assert_close(loss.content, on_content.square().mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(loss.style, on_style.square().mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(loss.orthogonality, torch.tensor(float(len(m))))  # each pair is antiparallel
    torch.testing.assert_close(loss.total, loss.content + loss.style + 0.5 * loss.orthogonality)


def test_a_perfect_merge_costs_nothing(setting):
    backbone, content, _, _, (draw, _) = setting
    nothing = {path: (torch.ones(1), torch.zeros(1)) for path in content.layers}
    loss = evaluate(backbone, content, content, content, nothing, draw, draw)
    assert loss.total < 1e-4


def test_relative_fidelity_is_a_share_of_what_each_adapter_changes(setting):
    backbone, content, style, m, draws = setting
    merged = columns.merge(content, style, m)
    loss = evaluate(backbone, content, style, merged, m, *draws, fidelity="relative")
    nothing = Adapter({})
    effects = differences(backbone, content, style, nothing, draws)
    for term, found, effect in zip(
        (loss.content, loss.style), differences(backbone, content, style, merged, draws), effects, strict=True
    ):
        shares = torch.stack([d.norm() / e.norm() for d, e in zip(found, effect, strict=True)])
        torch.testing.assert_close(term, shares.mean(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("fidelity", ["norm", "mse", "relative"])
def test_gradients_reach_coefficients_and_only_them(setting, fidelity):
    backbone, content, style, m, draws = setting
    m = {path: (m_c.requires_grad_(), m_s.requires_grad_()) for path, (m_c, m_s) in m.items()}
    merged = columns.merge(content, style, m)
    evaluate(backbone, content, style, merged, m, *draws, weight=0.0, fidelity=fidelity).total.backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for both in m.values() for x in both)
    assert not any(f.down.requires_grad or f.up.requires_grad for f in content.layers.values())
    assert not any(parameter.grad is not None for parameter in backbone.unet.parameters())


def test_gradient_is_that_of_finite_differences(setting):
    backbone, content, style, m, draws = setting
    path = next(iter(m))

    def total(step: float, m_c: torch.Tensor) -> torch.Tensor:
        moved = {**m, path: (m_c + step, m[path][1])}
        merged = columns.merge(content, style, moved)
        return evaluate(backbone, content, style, merged, moved, *draws, fidelity="mse", weight=0.0).total

    m_c = m[path][0].clone().requires_grad_()
    total(0.0, m_c).backward()
    with torch.no_grad():
        slope = (total(0.05, m_c) - total(-0.05, m_c)) / 0.1
    torch.testing.assert_close(m_c.grad.sum(), slope, rtol=0.02, atol=0)


def test_a_checkpointed_backward_pass_computes_with_the_merged_adapter_again(setting):
    backbone, content, style, m, draws = setting
    gradients = []
    for on in (False, True):
        leaves = {path: (m_c.clone().requires_grad_(), m_s.clone().requires_grad_()) for path, (m_c, m_s) in m.items()}
        loss = merging_loss(backbone, content, style, columns.merge(content, style, leaves), leaves, *draws)
        with backbone.checkpointed(on), loss as found:
            assert backbone.unet.is_gradient_checkpointing == backbone.unet.training == on
            found.total.backward()
        gradients.append([x.grad for both in leaves.values() for x in both])
    assert not backbone.unet.is_gradient_checkpointing and not backbone.unet.training
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-3, atol=1e-5)


def test_draws_are_keyed_by_seed_and_step(tiny, references):
    one, same, other = (references[0].draw(tiny, 2, generator(*key)) for key in ((0, 7), (0, 7), (1, 7)))
    assert torch.equal(one.latents, same.latents) and torch.equal(one.timesteps, same.timesteps)
    assert not torch.equal(one.latents, other.latents)
    assert not torch.equal(generator(1, 2).get_state(), generator(2, 1).get_state())


def test_each_picture_needs_a_prompt(tiny):
    with pytest.raises(UserError, match="2 reference pictures with 1 prompts"):
        References.encode(tiny, torch.zeros(2, 3, 16, 16), ["a dog"])
