"""Column-wise merges are exactly their formula, as one LoRA of rank r_c + r_s."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.lazy import Lazy
from lorarar.merging import columns, linear, lorarar
from lorarar.merging.hypernet import HyperNetwork
from lorarar.merging.registry import METHODS
from lorarar.training import ziplora

SHAPES = {"a.to_q": (8, 8), "a.to_k": (8, 12), "a.to_out.0": (8, 8)}


def make(rank: int, seed: int, shapes: dict[str, tuple[int, int]] = SHAPES) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        {
            path: Factors(torch.randn(rank, n, generator=generator), torch.randn(m, rank, generator=generator))
            for path, (m, n) in shapes.items()
        }
    )


content, style = make(3, seed=1), make(2, seed=2)


def assert_merge(merged: Adapter, expected: dict[str, torch.Tensor]) -> None:
    assert merged.layers.keys() == expected.keys()
    for path, delta in expected.items():
        torch.testing.assert_close(merged.layers[path].delta, delta)


@pytest.mark.parametrize("merge, weight", [(linear.direct, 1.0), (linear.average, 0.5)])
def test_linear_merges_are_weighted_sums_of_updates(merge, weight):
    merged = merge(content, style)
    assert_merge(merged, {p: weight * (content.layers[p].delta + style.layers[p].delta) for p in SHAPES})
    assert set(merged.ranks.values()) == {3 + 2}
    merged = merge(content, style, weights=(0.8, -0.6))
    assert_merge(merged, {p: 0.8 * content.layers[p].delta - 0.6 * style.layers[p].delta for p in SHAPES})


def test_column_merge_scales_columns_of_the_updates():
    m = {path: (torch.randn(n), torch.randn(n)) for path, (_, n) in SHAPES.items()}
    merged = columns.merge(content, style, m)
    expected = {p: m[p][0] * content.layers[p].delta + m[p][1] * style.layers[p].delta for p in SHAPES}
    assert_merge(merged, expected)
    assert set(merged.ranks.values()) == {3 + 2}


def test_layers_of_one_adapter_alone_are_kept():
    only_k = make(4, seed=3, shapes={"a.to_k": (8, 12), "b.to_v": (8, 12)})
    merged = linear.direct(content, only_k)
    assert merged.ranks == {"a.to_q": 3, "a.to_k": 7, "a.to_out.0": 3, "b.to_v": 4}
    torch.testing.assert_close(merged.layers["b.to_v"].delta, only_k.layers["b.to_v"].delta)


def test_half_precision_is_merged_in_single():
    half = content.to(torch.float16), style.to(torch.float16)
    merged = linear.average(*half)
    expected = {p: 0.5 * (half[0].layers[p].delta + half[1].layers[p].delta) for p in SHAPES}
    assert_merge(merged, expected)


def test_result_has_the_dtype_that_was_asked_for():
    m = {path: (torch.full((n,), 1 / 3), torch.full((n,), 2 / 3)) for path, (_, n) in SHAPES.items()}
    whole = columns.merge(content, style, m)
    half = columns.merge(content, style, m, dtype=torch.float16)
    for path, factors in whole.layers.items():
        for exact, rounded in zip(factors, half.layers[path], strict=True):
            assert torch.equal(exact.half(), rounded)  # rounded once, from products in float32


def test_gradients_of_coefficients_are_those_of_the_formula():
    m = torch.randn(2, 8, requires_grad=True)
    merged = columns.merge(content, style, {"a.to_q": (m[0], m[1])})
    (gradient,) = torch.autograd.grad(merged.layers["a.to_q"].delta.square().sum(), m)
    c, s = content.layers["a.to_q"].delta, style.layers["a.to_q"].delta
    (expected,) = torch.autograd.grad((m[0] * c + m[1] * s).square().sum(), m)
    torch.testing.assert_close(gradient, expected)


def test_convolutions_and_text_encoders_are_merged_like_all_layers():
    def conv(rank, seed, kernel=3):
        g = torch.Generator().manual_seed(seed)
        return Factors(torch.randn(rank, 4, kernel, kernel, generator=g), torch.randn(6, rank, 1, 1, generator=g))

    def update(factors):
        return torch.einsum("orxy,rihw->oihw", factors.up, factors.down)

    text = make(2, seed=5, shapes={"text_encoder.q": (4, 4)}).layers
    one = Adapter(content.layers, others={"unet.conv": conv(2, 6)} | text)
    other = Adapter(style.layers, others={"unet.conv": conv(3, 7)})
    others = linear.direct(one, other, weights=(0.25, 2.0), dtype=torch.float64).others
    assert others.keys() == {"unet.conv", "text_encoder.q"}
    torch.testing.assert_close(others["text_encoder.q"].delta, 0.25 * text["text_encoder.q"].delta)
    expected = 0.25 * update(one.others["unet.conv"]) + 2 * update(other.others["unet.conv"])
    torch.testing.assert_close(update(others["unet.conv"]), expected, check_dtype=False)
    other = Adapter(style.layers, others={"unet.conv": conv(3, 7, kernel=1)})
    with pytest.raises(UserError, match="layer conv is 6 x 36 and 6 x 4 in the two adapters"):
        linear.direct(one, other)


def test_a_matrix_and_a_convolution_of_one_by_one_are_the_same_layer():
    """`proj_in` of SD 1.5 and 2.1 is either, by trainer; the result has the content's shape."""
    one, other = make(2, 1, {"proj_in": (6, 4)}), make(3, 2, {"proj_in": (6, 4)})
    as_conv = Adapter({}, others={"unet.proj_in": Factors(*(x[..., None, None] for x in other.layers["proj_in"]))})
    total = one.layers["proj_in"].delta + other.layers["proj_in"].delta
    there, back = linear.direct(one, as_conv), linear.direct(as_conv, one)
    assert not there.others and not back.layers
    torch.testing.assert_close(there.layers["proj_in"].delta, total)
    torch.testing.assert_close(back.others["unet.proj_in"].delta, total[..., None, None])


def test_layers_are_merged_on_one_thread(adapters, monkeypatch):
    """Two would wait for each other after each of a thousand small products: seconds, where another core is busy."""
    threads = set()
    concatenate = columns.concatenate

    def noting(*args, **options):
        threads.add(torch.get_num_threads())
        return concatenate(*args, **options)

    monkeypatch.setattr(columns, "concatenate", noting)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        columns.merge(*adapters, {}).computed()
        assert threads == {1} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("format", ["diffusers", "peft", "kohya"])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.schedule and name != "joint"])
def test_a_merge_is_computed_while_it_is_saved(tmp_path, monkeypatch, name, format):
    block = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    shapes = {f"{block}.to_q": (8, 8), f"{block}.to_v": (8, 12), f"{block}.to_out.0": (8, 8)}
    others = {"unet.conv_in": Factors(torch.randn(2, 4, 3, 3), torch.randn(6, 2, 1, 1))}
    one, other = make(3, 1, shapes), Adapter(make(2, 2, shapes).layers, others=others)
    del one.layers[f"{block}.to_v"]
    given = {"lorarar": {"hypernet": HyperNetwork([8])}, "ziplora": {"coefficients": {}}}
    blocks = {"content_blocks": ("down_blocks",), "style_blocks": ("down_blocks",)}
    options = blocks if name.endswith("_blocks") else given.get(name, {})
    lazy = METHODS[name].merge(one, other, dtype=torch.float16, **options)
    solid = lazy.computed()
    assert lazy.ranks == solid.ranks and isinstance(solid.layers, dict) and isinstance(solid.others, dict)
    assert isinstance(lazy.layers, dict if "relative_error" in lazy.metadata else Lazy)
    solid.save(tmp_path / "solid.safetensors", format=format)
    asked = []
    monkeypatch.setattr(Lazy, "__getitem__", lambda self, key: asked.append((id(self), key)) or self._compute(key))
    lazy.save(tmp_path / "lazy.safetensors", format=format)
    assert (tmp_path / "lazy.safetensors").read_bytes() == (tmp_path / "solid.safetensors").read_bytes()
    assert max(Counter(asked).values()) == 1  # each layer once


def test_adapters_of_different_bases_are_refused_by_layer():
    with pytest.raises(UserError, match=r"layer a\.to_q is 8 x 8 and 16 x 8"):
        linear.direct(content, make(2, seed=4, shapes={"a.to_q": (16, 8)}))


def test_lorarar_predicts_query_and_output_and_averages_the_rest():
    network = HyperNetwork([8], hidden=5, seed=3)
    m = network.coefficients(content, style)
    assert m.keys() == {"a.to_q", "a.to_out.0"}
    c, s = content.layers, style.layers
    expected = {p: m[p][0] * c[p].delta + m[p][1] * s[p].delta for p in m}
    assert_merge(
        lorarar.merge(content, style, hypernet=network),
        expected | {"a.to_k": 0.5 * (c["a.to_k"].delta + s["a.to_k"].delta)},
    )
    assert_merge(
        lorarar.merge(content, style, hypernet=network, constants=(1.0, 1.0)),
        expected | {"a.to_k": c["a.to_k"].delta + s["a.to_k"].delta},
    )


def test_coefficients_travel_through_files(tmp_path):
    m = {path: (torch.randn(n), torch.randn(n)) for path, (_, n) in SHAPES.items()}
    columns.save(tmp_path / "m.safetensors", m, {"pair": "dog8+wooden"})
    loaded = columns.load(tmp_path / "m.safetensors")
    assert loaded.keys() == m.keys()
    assert all(torch.equal(a, b) for p in m for a, b in zip(loaded[p], m[p], strict=True))
    content.save(tmp_path / "adapter.safetensors")
    with pytest.raises(UserError, match="not a file of merging coefficients"):
        columns.load(tmp_path / "adapter.safetensors")


def test_ziplora_starts_from_the_direct_merge_and_lowers_the_loss(tiny, adapters, references):
    content, style = adapters
    losses = []
    options = {"batch_size": 2, "weight": 0.0, "seed": 5}
    untouched = ziplora.optimise(tiny, content, style, *references, steps=0, **options)
    assert untouched.keys() == content.layers.keys()
    assert all(torch.equal(m, torch.ones_like(m)) for both in untouched.values() for m in both)

    fitted = ziplora.optimise(
        tiny, content, style, *references, steps=12, learning_rate=0.05, **options,
        progress=lambda step, loss: losses.append(loss.total.item()),
    )  # fmt: skip
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    again = ziplora.optimise(tiny, content, style, *references, steps=12, learning_rate=0.05, **options)
    assert all(torch.equal(a, b) for p in fitted for a, b in zip(fitted[p], again[p], strict=True))
    assert not any(m.requires_grad for both in fitted.values() for m in both)


def test_ziplora_stops_when_the_loss_is_no_number(tiny, adapters, references):
    content, style = adapters
    path = next(iter(content.layers))
    content.layers[path].down.fill_(float("nan"))
    with pytest.raises(UserError, match="step 1; lower its learning rate"):
        ziplora.optimise(tiny, content, style, *references, steps=2)
