"""Every method equals an independent reference: peft's own merge, or its formula on dW."""

from __future__ import annotations

import itertools
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.lazy import blanks
from lorarar.merging import columns, entries, klora, nplora, svd
from lorarar.merging.hypernet import HyperNetwork
from lorarar.merging.klora import Schedule
from lorarar.merging.registry import METHODS
from lorarar.randomness import generator
from lorarar.training import joint

SHAPES = {"q": (8, 8), "k": (8, 12), "out": (10, 6)}
PEFT = {"dare": "dare_linear", "ties": "ties", "dare_ties": "dare_ties", "magnitude_prune": "magnitude_prune"}
quick = settings(max_examples=25, deadline=None, derandomize=True)


def make(rank: int, seed: int, shapes: dict[str, tuple[int, int]] = SHAPES) -> Adapter:
    random = torch.Generator().manual_seed(seed)
    return Adapter(
        {
            path: Factors(torch.randn(rank, n, generator=random), torch.randn(m, rank, generator=random))
            for path, (m, n) in shapes.items()
        }
    )


content, style, same_rank = make(3, seed=1), make(2, seed=2), make(3, seed=3)


def deltas(adapter: Adapter) -> dict[str, Tensor]:
    return {path: factors.delta for path, factors in adapter.layers.items()}


def assert_equal(merged: Adapter, expected: dict[str, Tensor], **tolerance: float) -> None:
    assert merged.layers.keys() == expected.keys()
    for path, delta in expected.items():
        torch.testing.assert_close(merged.layers[path].delta, delta, **tolerance)


def relative(merged: Adapter, exact: dict[str, Tensor]) -> float:
    lost = sum(float((merged.layers[path].delta - delta).square().sum()) for path, delta in exact.items())
    return (lost / sum(float(delta.square().sum()) for delta in exact.values())) ** 0.5


def weighted_sum(c: Adapter, s: Adapter, weights: tuple[float, float] = (1.0, 1.0)) -> dict[str, Tensor]:
    """Of the dW of all layers, zeros where an adapter has none."""
    parts = [(deltas(adapter), weight) for adapter, weight in zip((c, s), weights, strict=True)]
    return {
        path: sum(weight * part[path] for part, weight in parts if path in part)
        for path in c.layers.keys() | s.layers.keys()
    }


def layer_seed(seed: int, path: str) -> int:
    return generator(seed, *path.encode()).initial_seed()


def by_peft(c: Adapter, s: Adapter, kind: str, weights, *, scaling: float = 1.0, seed: int = 0, **options):
    """dW of all layers as peft merges them; alpha / r of both adapters is `scaling`."""
    from peft import LoraConfig, get_peft_model

    shapes = {path: (len(up), down.shape[1]) for path, (down, up) in (c.layers | s.layers).items()}
    linears = nn.ModuleDict({path: nn.Linear(n, m, bias=False) for path, (m, n) in shapes.items()})
    configs = {
        name: LoraConfig(r=rank, lora_alpha=scaling * rank, target_modules=[*adapter.layers])
        for name, adapter in (("content", c), ("style", s))
        for rank in [max(adapter.ranks.values())]
    }
    model = get_peft_model(linears, configs["content"], "content")
    model.add_adapter("style", configs["style"])
    for name, adapter in (("content", c), ("style", s)):
        for path, factors in adapter.layers.items():
            linears[path].lora_A[name].weight.data = factors.down
            linears[path].lora_B[name].weight.data = factors.up / scaling
    inject = model.base_model.inject_adapter

    def inject_then_seed(*args):  # injection draws weights that peft then overwrites
        inject(*args)
        torch.manual_seed(seed)

    model.base_model.inject_adapter = inject_then_seed
    model.add_weighted_adapter(["content", "style"], list(weights), "merged", combination_type=kind, **options)
    return {path: linears[path].get_delta_weight("merged").detach() for path in shapes}


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.3)])
def test_concatenation_is_pefts(weights):
    merged = METHODS["concat"].merge(content, style, weights=weights)
    assert_equal(merged, by_peft(content, style, "cat", weights))


@pytest.mark.parametrize("rank", [None, 1, 4, 50])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.3)])
def test_svd_is_pefts(weights, rank):
    merged = svd.merge(content, style, rank=rank, weights=weights)
    expected = by_peft(content, style, "svd", weights, svd_rank=rank, svd_full_matrices=False)
    assert_equal(merged, expected, rtol=1e-4, atol=1e-5)
    assert max(merged.ranks.values()) == {None: 3, 1: 1, 4: 4, 50: 5}[rank]
    error = relative(merged, weighted_sum(content, style, weights))
    assert float(merged.metadata["relative_error"]) == pytest.approx(error, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0), (0.7, -0.3)])
@pytest.mark.parametrize("name, options", [
    ("ties", {}), ("ties", {"majority": "frequency"}), ("ties", {"density": 0.2}), ("magnitude_prune", {}),
    ("magnitude_prune", {"density": 0.9}),
])  # fmt: skip
def test_factors_merged_by_magnitude_are_pefts(name, options, weights):
    merged = METHODS[name].merge(content, same_rank, weights=weights, **options)
    renamed = {"majority_sign_method" if key == "majority" else key: value for key, value in options.items()}
    expected = by_peft(content, same_rank, PEFT[name], weights, **{"density": 0.5} | renamed)
    assert_equal(merged, expected)
    assert set(merged.ranks.values()) == {3} and not merged.metadata


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.3)])
@pytest.mark.parametrize("name", ["dare", "dare_ties"])
def test_factors_merged_at_random_are_pefts_with_the_layers_own_seed(name, weights):
    merged = METHODS[name].merge(content, same_rank, weights=weights, density=0.7, seed=4)
    for path in SHAPES:
        c, s = (Adapter({path: adapter.layers[path]}) for adapter in (content, same_rank))
        expected = by_peft(c, s, PEFT[name], weights, seed=layer_seed(4, path), density=0.7)
        assert_equal(Adapter({path: merged.layers[path]}), expected)


def test_scaling_that_both_adapters_share_is_pefts():
    for name in ("ties", "magnitude_prune"):
        expected = by_peft(content, same_rank, PEFT[name], (0.6, 0.9), scaling=2.0, density=0.5)
        assert_equal(METHODS[name].merge(content, same_rank, weights=(0.6, 0.9)), expected)


def test_smaller_factors_are_filled_up_with_zeros():
    filled = Adapter(
        {
            path: Factors(torch.cat([down, torch.zeros(1, down.shape[1])]), torch.cat([up, torch.zeros(len(up), 1)], 1))
            for path, (down, up) in style.layers.items()
        }
    )
    for name in PEFT:
        merge = METHODS[name].merge
        assert_equal(merge(content, style), deltas(merge(content, filled)))


def test_layers_of_one_adapter_are_sparsified_alone_as_peft_does():
    fewer = Adapter({"q": same_rank.layers["q"]})
    for name in ("ties", "magnitude_prune"):
        expected = by_peft(content, fewer, PEFT[name], (0.7, 0.4), density=0.5)
        assert_equal(METHODS[name].merge(content, fewer, weights=(0.7, 0.4)), expected)


@pytest.mark.parametrize("kind", ["plain", "bfloat16", "whole numbers", "zeros", "infinite"])
@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name, majority", [
    ("ties", "total"), ("ties", "frequency"), ("dare_ties", "total"), ("dare_ties", "frequency"), ("dare", None),
    ("magnitude_prune", None),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:The density")
def test_entries_have_the_bits_of_pefts_functions(name, majority, density, kind):
    """Also where many magnitudes equal the threshold, as bfloat16's and whole numbers do."""
    from peft.utils import merge_utils

    random = torch.Generator().manual_seed(1)
    for shape, weights in itertools.product([(1, 1), (7, 9), (64, 320)], [(1.0, 1.0), (0.7, -0.3), (0.0, 2.0)]):
        pair = [torch.randn(shape, generator=random) for _ in range(2)]
        if kind == "bfloat16":
            pair = [tensor.bfloat16().float() for tensor in pair]
        elif kind == "whole numbers":  # with opposite ones of one size, where no sign has the majority
            pair = [tensor.round() for tensor in pair]
        elif kind == "zeros":
            pair[1] *= 0
        elif kind == "infinite":
            pair[0][0, 0] = float("inf")
        torch.manual_seed(3)
        options = [majority] if majority else []
        expected = getattr(merge_utils, PEFT[name])(pair, torch.tensor(weights), density, *options)
        rule = entries.Rule("random" if name.startswith("dare") else "smallest", elects=name.endswith("ties"))
        merged = rule.merge(pair, weights, density=density, majority=majority, random=torch.Generator().manual_seed(3))
        assert torch.equal(merged.isnan(), expected.isnan())
        numbers = [tensor.nan_to_num(0.0).view(torch.int32) for tensor in (merged, expected)]  # -0 is not 0
        assert torch.equal(*numbers)


def test_sparse_merges_run_without_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    for name in PEFT:
        assert METHODS[name].merge(content, style).computed().layers.keys() == SHAPES.keys()


def published(name: str, updates: list[Tensor], weights: tuple[float, float], density: float, seed: int) -> Tensor:
    """The formula of each method on the two dW of a layer."""
    if name.startswith("dare"):
        torch.manual_seed(seed)
        kept = [d * torch.bernoulli(torch.full_like(d, density)) / density for d in updates]
    else:
        kept = [
            d * (d.abs() >= d.abs().flatten().sort(descending=True)[0][int(density * d.numel()) - 1]) for d in updates
        ]
    if not name.endswith("ties"):
        return sum(w * d for w, d in zip(weights, kept, strict=True))
    sign = sum(kept).sign()
    agree = [(d.sign() == sign) & (d != 0) for d in kept]
    total = sum(w * d * a for w, d, a in zip(weights, kept, agree, strict=True))
    return total / sum(a.float() for a in agree).clamp(min=1)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.3)])
@pytest.mark.parametrize("name", PEFT)
def test_delta_space_is_the_published_definition(name, weights):
    options = {"density": 0.4, "weights": weights, "seed": 3, "space": "delta"}
    expected = {
        path: published(name, [content.layers[path].delta, style.layers[path].delta], weights, 0.4, layer_seed(3, path))
        for path in SHAPES
    }
    whole = METHODS[name].merge(content, style, rank=20, **options)
    assert_equal(whole, expected, rtol=1e-4, atol=1e-5)
    assert float(whole.metadata["relative_error"]) < 1e-5
    cut = METHODS[name].merge(content, style, **options)
    assert set(cut.ranks.values()) == {3 + 2}
    u, sigma, vh = torch.linalg.svd(expected["q"])
    torch.testing.assert_close(cut.layers["q"].delta, u[:, :5] * sigma[:5] @ vh[:5], rtol=1e-4, atol=1e-5)
    assert float(cut.metadata["relative_error"]) == pytest.approx(relative(cut, expected), rel=1e-4)


def dense_core(rule: str, c: Tensor, s: Tensor, ranks: tuple[int, int], seed: int, **options) -> Tensor:
    """A merge between common bases, all from the full SVD of dense float64 updates."""
    thin = []
    for update, rank in zip((c, s), ranks, strict=True):
        u, sigma, vh = torch.linalg.svd(update.double())
        root = sigma[:rank].sqrt()
        thin.append((u[:, :rank] * root, root[:, None] * vh[:rank]))
    k = sum(ranks)
    if rule == "knots_ties":
        u, v = torch.linalg.svd(torch.cat([c, s], 1).double())[0][:, :k], torch.eye(c.shape[1]).double()
    else:
        u = torch.linalg.svd(torch.cat([up for up, _ in thin], 1))[0][:, :k]
        v = torch.linalg.svd(torch.cat([down for _, down in thin]))[2][:k].T
    pair = [(u.T @ update.double() @ v).float() for update in (c, s)]
    name = rule.removeprefix("core_").removeprefix("knots_")
    return u @ published(name, pair, options["weights"], options["density"], seed).double() @ v.T


WIDE = {"q": (20, 24), "k": (16, 30), "out": (24, 18)}


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.3)])
@pytest.mark.parametrize("name", ["core_ties", "core_dare", "core_dare_ties", "knots_ties"])
def test_sparse_merges_between_common_bases_are_the_dense_formulas(name, weights):
    c, s = make(3, 11, WIDE), make(2, 12, WIDE)
    options = {"density": 0.4, "weights": weights}
    merged = METHODS[name].merge(c, s, seed=5, **options)
    expected = {
        path: dense_core(
            name, c.layers[path].delta, s.layers[path].delta, (3, 2), layer_seed(5, path), **options
        ).float()
        for path in WIDE
    }
    assert_equal(merged, expected, rtol=1e-4, atol=1e-4)
    assert set(merged.ranks.values()) == {3 + 2}


def test_core_space_loses_nothing():
    merged = METHODS["core_sum"].merge(content, style, weights=(0.7, -0.3))
    assert_equal(merged, weighted_sum(content, style, (0.7, -0.3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_tsv_makes_the_singular_vectors_of_both_orthogonal(scale):
    c, s = make(3, 11, WIDE), make(2, 12, WIDE)
    expected = {}
    for path in WIDE:
        u_c, d_c, vh_c = torch.linalg.svd(c.layers[path].delta.double())
        u_s, d_s, vh_s = torch.linalg.svd(s.layers[path].delta.double())
        sides = torch.cat([u_c[:, :3], u_s[:, :2]], 1), torch.cat([vh_c[:3], vh_s[:2]]).T
        # X (X^T X)^(-1/2) has orthonormal columns nearest to those of X
        values, vectors = zip(*(torch.linalg.eigh(side.T @ side) for side in sides), strict=True)
        u, v = (
            side @ (basis * value.rsqrt()) @ basis.T for side, value, basis in zip(sides, values, vectors, strict=True)
        )
        expected[path] = (scale * u * torch.cat([d_c[:3], d_s[:2]]) @ v.T).float()
    assert_equal(METHODS["tsv"].merge(c, s, scale=scale), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_iso_c_gives_every_direction_of_the_sum_the_mean_singular_value(scale):
    c, s = make(3, 11, WIDE), make(2, 12, WIDE)
    expected = {}
    for path, total in weighted_sum(c, s).items():
        u, sigma, vh = torch.linalg.svd(total.double())
        expected[path] = (scale * sigma[:5].mean() * u[:, :5] @ vh[:5]).float()
    assert_equal(METHODS["iso_c"].merge(c, s, scale=scale), expected, rtol=1e-4, atol=1e-4)


def test_balanced_sums_make_the_style_as_large_as_the_content():
    c, s = deltas(content), deltas(style)
    total = (sum(d.square().sum() for d in c.values()) / sum(d.square().sum() for d in s.values())).sqrt()
    assert_equal(METHODS["balanced"].merge(content, style), {p: c[p] + total * s[p] for p in c}, rtol=1e-4, atol=1e-5)
    expected = {path: c[path] + c[path].norm() / s[path].norm() * s[path] for path in c}
    assert_equal(METHODS["balanced_layers"].merge(content, style), expected, rtol=1e-4, atol=1e-5)
    lacks = Adapter({"q": style.layers["q"], "k": Factors(style.layers["k"].down, style.layers["k"].up * 0)})
    merged = METHODS["balanced_layers"].merge(content, lacks)
    assert_equal(merged, expected | {"k": c["k"], "out": c["out"]}, rtol=1e-4, atol=1e-5)


def chosen(schedule: Schedule, c: Adapter, steps: int) -> list[dict[str, bool]]:
    """For each step, the layers that are the content's."""
    return [
        {path: torch.equal(factors.up, c.layers[path].up) for path, factors in schedule.at(step / steps).layers.items()}
        for step in range(steps)
    ]


def graded(seed: int) -> tuple[Adapter, Adapter]:
    """Adapters of which some layers turn early, some late and some never."""
    shapes = {f"down_blocks.{i}.attn1.{part}": (8, 9) for i in (1, 2, 10) for part in ("to_q", "to_k", "to_out.0")}
    c, s = make(3, seed, shapes), make(2, seed + 1, shapes)
    for i, factors in enumerate(s.layers.values()):
        factors.up.mul_(0.3 + 0.2 * i)
    return c, s


@pytest.mark.parametrize("steps", [4, 20, 50])
def test_switch_and_split_choose_as_their_loops_do(steps):
    c, s = graded(30)
    for share in (0.0, 0.25, 1.0):
        expected = [step < share * steps for step in range(steps)]
        found = chosen(METHODS["split"].merge(c, s, share=share), c, steps)
        assert found == [dict.fromkeys(sorted(c.layers), choice) for choice in expected]
    for tau in (1, 3, steps):
        found = chosen(METHODS["switch"].merge(c, s, period=tau / steps), c, steps)
        assert found == [dict.fromkeys(c.layers, step // tau % 2 == 0) for step in range(steps)]


@pytest.mark.parametrize("options", [{}, {"discrepancy": 0.9}, {"alpha": 3.0}, {"balance": True}])
def test_est_chooses_as_its_loop_does(options):
    c, s = graded(32)
    alpha, discrepancy = options.get("alpha", 1.5), options.get("discrepancy", 0.5)
    energy = [{path: float(delta.square().sum()) for path, delta in deltas(a).items()} for a in (c, s)]
    factor = sum(energy[0].values()) / sum(energy[1].values()) if options.get("balance") else 1.0
    expected = [
        {path: energy[0][path] >= (alpha * step / 20 + 1 - discrepancy) * factor * energy[1][path] for path in c.layers}
        for step in range(20)
    ]
    assert chosen(METHODS["est"].merge(c, s, **options), c, 20) == expected
    assert len({str(step) for step in expected}) > 2


@pytest.mark.parametrize("steps", [5, 50])
def test_klora_as_released_counts_layers_as_its_program_does(steps):
    c, s = graded(34)
    [*c.layers.values()][-1].up.mul_(2)
    of_c, of_s = deltas(c), deltas(s)
    gamma = sum(float(of_c[p].abs().sum() / of_s[p].abs().sum()) for p in of_c) / len(of_c)
    count, expected = 0, []
    for _ in range(steps):
        choice = {}
        for path in c.layers:  # `graded` lists them as a pass runs them
            count += 1
            scale = 1.5 * (count % (steps * len(of_c))) / (steps * len(of_c)) + 0.5
            top_c, top_s = (float(d[path].abs().flatten().sort(descending=True)[0][:7].sum()) for d in (of_c, of_s))
            choice[path] = top_c / gamma > top_s * scale
        expected.append(choice)
    assert chosen(METHODS["klora_released"].merge(c, s, largest=7, steps=steps), c, steps) == expected
    assert len({str(step) for step in expected}) > 3
    assert expected[-1][path] and not expected[-2][path], "the very last layer is at the beginning again"


def test_block_filters_keep_the_layers_of_their_blocks():
    shapes = {
        f"{block}.to_q": (8, 9)
        for block in ("down_blocks.1", "mid_block", "up_blocks.0.attentions.0", "up_blocks.0.attentions.1",
                      "up_blocks.0.attentions.10", "up_blocks.1.attentions.0")
    }  # fmt: skip
    c, s = make(3, 36, shapes), make(2, 37, shapes)
    c.others = s.others = make(1, 3, {"text_encoder.q": (4, 4)}).layers

    def of(adapter: Adapter, *blocks: str) -> dict[str, Tensor]:
        return {f"{block}.to_q": adapter.layers[f"{block}.to_q"].delta for block in blocks}

    first, second = "up_blocks.0.attentions.0", "up_blocks.0.attentions.1"
    merged = METHODS["blora_blocks"].merge(c, s)
    assert_equal(merged, of(c, first) | of(s, second))
    assert merged.others.keys() == {"text_encoder.q"}
    wider = of(c, "down_blocks.1", "mid_block", first) | of(s, second, "up_blocks.1.attentions.0")
    assert_equal(METHODS["craft_blocks"].merge(c, s), wider)
    both = METHODS["blora_blocks"].merge(c, s, content_blocks=["mid_block"], style_blocks=["mid_block"])
    path = "mid_block.to_q"
    assert_equal(both, {path: c.layers[path].delta + s.layers[path].delta})


def updates_over_time(merged: Adapter | Schedule) -> list[dict[str, Tensor]]:
    return [deltas(a) for a in ([merged.at(t / 10) for t in range(10)] if isinstance(merged, Schedule) else [merged])]


NEEDED = {
    "lorarar": {"hypernet": HyperNetwork([20])},
    "ziplora": {"coefficients": {"a.to_q": (torch.rand(24), torch.rand(24))}},
    "joint": {"adapter": make(2, 14, {"a.to_q": (20, 24)})},
}
BLOCKS = {
    "a.to_q": (20, 24), "up_blocks.0.attentions.0.to_k": (16, 30), "up_blocks.0.attentions.1.to_v": (24, 18),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", METHODS)
def test_merges_that_claim_so_depend_on_the_updates_alone(name, seed):
    """And those that do not claim it change, so that the claim says something."""
    options = NEEDED.get(name, {})
    c, s = make(4, 20 + seed, BLOCKS), make(3, 40 + seed, BLOCKS)
    random = torch.Generator().manual_seed(seed)

    def other_factors(adapter: Adapter) -> Adapter:
        layers = {}
        for path, (down, up) in adapter.layers.items():
            mix = torch.randn(len(down), len(down), generator=random).double() + 2 * torch.eye(len(down)).double()
            layers[path] = Factors((mix.inverse() @ down.double()).float(), (up.double() @ mix).float())
        return Adapter(layers)

    before = updates_over_time(METHODS[name].merge(c, s, **options))
    after = updates_over_time(METHODS[name].merge(other_factors(c), other_factors(s), **options))
    change = max(
        float((one[path] - other[path]).norm() / (1e-9 + one[path].norm()))
        for one, other in zip(before, after, strict=True)
        for path in one
    )
    assert change < 1e-3 if METHODS[name].invariant else change > 0.1


def test_large_layers_are_cut_by_a_randomised_svd_with_a_fixed_seed():
    update = torch.randn(160, 200, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    cut = svd.truncate(update, 4)
    assert torch.equal(torch.get_rng_state(), state)
    best = torch.linalg.svdvals(update)[4:].square().sum()
    assert best * 0.9999 <= cut.lost <= best * 1.01
    torch.manual_seed(6)
    assert torch.equal(svd.truncate(update, 4).factors.down, cut.factors.down)


@pytest.mark.parametrize(
    "options, strength", [({}, 1 / 3), ({"mu": 2.0}, 2 / 3), ({"mu": 0.0}, 0.0), ({"hard": True}, 1.0)]
)
@pytest.mark.parametrize("deficient", [False, True])
def test_nplora_projects_by_the_singular_vectors_of_the_style(options, strength, deficient):
    style = make(4, seed=6)
    if deficient:  # the rank of dW is one less than that of its factors
        for down, _ in style.layers.values():
            down[3] = 2 * down[0] - down[1]
    merged = nplora.merge(content, style, **options)
    expected = {}
    for path in SHAPES:
        c, s = content.layers[path].delta, style.layers[path].delta
        v = torch.linalg.svd(s)[2][: 3 if deficient else 4].T
        expected[path] = s + c @ (torch.eye(len(v)) - strength * v @ v.T)
    assert_equal(merged, expected, rtol=1e-4, atol=1e-4)
    assert set(merged.ranks.values()) == {3 + 4}


def naive_klora(c: Adapter, s: Adapter, step: int, steps: int, variant: str) -> dict[str, Tensor]:
    """One step of K-LoRA's loop, everything computed again."""
    gamma = sum(d.abs().sum() for d in deltas(c).values()) / sum(d.abs().sum() for d in deltas(s).values())
    alpha = Fraction("1.5")
    scale = alpha * step / steps + Fraction("0.5")
    if variant == "s*":
        scale = (alpha * step / steps + Fraction("0.85") * alpha) % alpha
    chosen = {}
    for path in c.layers:
        k = c.layers[path].rank * s.layers[path].rank
        of_c, of_s = (a.layers[path].delta.abs().flatten().sort(descending=True)[0][:k].sum() for a in (c, s))
        chosen[path] = (c if of_c / gamma > of_s * float(scale) else s).layers[path].delta
    return chosen


@pytest.mark.parametrize("variant", ["s", "s*"])
@pytest.mark.parametrize("steps", [1, 20, 50])
def test_klora_chooses_as_its_loop_does(variant, steps, tmp_path):
    shapes = {f"layer{i}": (8, 9) for i in range(12)}
    c, s = make(3, seed=8, shapes=shapes), make(2, seed=9, shapes=shapes)
    for i, factors in enumerate(s.layers.values()):  # layers that turn early, late and never
        factors.up.mul_(0.2 + 0.15 * i)
    klora.merge(c, s, variant=variant).save(tmp_path / "schedule.safetensors")
    schedule = Schedule.load(tmp_path / "schedule.safetensors")
    firsts = set()
    for step in range(steps):
        adapter = schedule.at(step / steps)
        assert_equal(adapter, naive_klora(c, s, step, steps, variant), rtol=0, atol=0)
        firsts.add(sum(adapter.layers[path].rank == 3 for path in shapes))
    assert steps == 1 or len(firsts) > 3


def test_klora_keeps_layers_of_one_adapter_and_carries_the_rest(tmp_path):
    one = Adapter(content.layers | make(2, 4, {"only": (4, 4)}).layers, others=make(1, 5, {"text": (3, 3)}).layers)
    zero = Adapter({path: Factors(down, up * 0) for path, (down, up) in style.layers.items()})
    schedule = klora.merge(one, zero, dtype=torch.float16)
    schedule.metadata["made"] = "here"
    for made in (schedule, _reloaded(schedule, tmp_path)):
        assert "only" not in made.turns and made.metadata == {"made": "here"}
        for progress in (0, 0.999):  # a style without any update never wins
            adapter = made.at(progress)
            assert_equal(adapter, deltas(one.to(torch.float16)))
        assert adapter.others["text"].delta.shape == (3, 3)
        assert adapter.layers["only"].up.dtype == torch.float16
    assert all(turns == (0.0,) for turns in klora.merge(zero, one).turns.values())


def _reloaded(schedule: Schedule, folder) -> Schedule:
    schedule.save(folder / "schedule.safetensors")
    return Schedule.load(folder / "schedule.safetensors")


def test_other_files_are_no_schedules(tmp_path):
    columns.save(tmp_path / "m.safetensors", {"a": (torch.ones(2), torch.ones(2))}, {})
    with pytest.raises(UserError, match=r"m\.safetensors: not a schedule"):
        Schedule.load(tmp_path / "m.safetensors")


def test_joint_training_mixes_both_concepts_half_and_half(monkeypatch):

    asked = []

    def record(backbone, images, prompts, **training):
        asked.append((images[:, 0, 0, 0].tolist(), prompts, training))
        return content

    monkeypatch.setattr(joint, "train_adapter", record)
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 4, 4)
    trained = joint.train(None, images[:2], ["a", "b"], images[2:], ["c", "d", "e"], rank=7)
    assert asked == [([0, 1] * 3 + [2, 3, 4] * 2, ["a", "b"] * 3 + ["c", "d", "e"] * 2, {"rank": 7})]
    merged = METHODS["joint"].merge(style, style, adapter=trained, dtype=torch.float16)
    assert_equal(merged, deltas(content.to(torch.float16)))
    with pytest.raises(UserError, match="0 reference pictures with 0 prompts"):
        joint.train(None, images[:2], ["a", "b"], images[:0], [])


def test_joint_training_makes_one_adapter_that_learns_both(tiny):
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    losses: list[float] = []
    adapter = joint.train(
        tiny, images[:2], ["a sks dog"] * 2, images[2:], ["a car in oil painting style"],
        rank=2, steps=30, learning_rate=1e-2, batch_size=4, progress=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    assert set(adapter.ranks.values()) == {2} and len(adapter.layers) == 56
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


@pytest.mark.parametrize("name, options, message", [
    ("ties", {"density": 0.0}, "density 0.0: give a share above 0"),
    ("dare", {"density": 1.5}, "density 1.5: give a share above 0"),
    ("dare", {"density": "half"}, "density half: give a share above 0"),
    ("ties", {"majority": "most"}, "majority most: give total or frequency"),
    ("dare", {"majority": "total"}, "majority total: this method elects no sign"),
    ("dare", {"space": "dense"}, "space dense: give factors or delta"),
    ("dare", {"rank": 4}, "rank 4: only works with space=delta"),
    ("dare", {"space": "delta", "rank": 0}, "rank 0: give a whole number from 1"),
    ("svd", {"rank": -1}, "rank -1: give a whole number from 1"),
    ("svd", {"weights": (1.0,)}, r"weights \(1.0,\): give two numbers"),
    ("concat", {"weights": 0.5}, "weights 0.5: give two numbers"),
    ("nplora", {"mu": -0.1}, "mu -0.1: give 0 or more"),
    ("nplora", {"hard": "false"}, "hard false: give True or False"),
    ("klora", {"alpha": 0.0}, "alpha 0.0: give a number above 0"),
    ("klora", {"beta": "low"}, "beta low: give a number"),
    ("klora", {"variant": "t"}, r"variant t: give s or s\*"),
    ("klora_released", {"beta": -1.0}, "beta -1.0: give 0 or more"),
    ("klora_released", {"largest": 0}, "largest 0: give a whole number from 1"),
    ("klora_released", {"steps": 2.5}, "steps 2.5: give a whole number from 1"),
    ("core_ties", {"density": 0.0}, "density 0.0: give a share above 0"),
    ("core_dare", {"majority": "total"}, "majority total: this method elects no sign"),
    ("tsv", {"scale": 0.0}, "scale 0.0: give a number above 0"),
    ("iso_c", {"scale": "mean"}, "scale mean: give a number above 0"),
    ("balanced", {"per": "column"}, "per column: give total or layer"),
    ("est", {"discrepancy": "much"}, "discrepancy much: give a number"),
    ("est", {"balance": "yes"}, "balance yes: give True or False"),
    ("switch", {"period": 0.0}, "period 0.0: give a share above 0"),
    ("split", {"share": 1.5}, "share 1.5: give a share from 0 to 1"),
    ("blora_blocks", {"style_blocks": "mid_block"}, "style_blocks mid_block: give paths"),
    ("blora_blocks", {}, "content_blocks up_blocks.0.attentions.0: the content adapter has no layer there"),
])  # fmt: skip
def test_bad_options_are_told_in_one_line(name, options, message):
    with pytest.raises(UserError, match=message) as caught:
        METHODS[name].merge(content, style, **options)
    assert "\n" not in str(caught.value)


def test_the_table_lists_every_method_and_each_runs():
    assert [*METHODS] == [
        "direct", "average", "concat", "svd", "dare", "ties", "dare_ties", "magnitude_prune",
        "ziplora", "lorarar", "klora", "nplora", "core_sum", "core_ties", "core_dare", "core_dare_ties", "knots_ties",
        "tsv", "iso_c", "balanced", "balanced_layers", "est", "switch", "split", "blora_blocks", "craft_blocks",
        "klora_released", "joint",
    ]  # fmt: skip
    assert all(name == method.name for name, method in METHODS.items())
    shapes = {"up_blocks.0.attentions.0.to_q": (8, 8), "up_blocks.0.attentions.1.to_k": (8, 12)}
    c, s = make(3, 1, shapes), make(2, 2, shapes)
    c.others = make(1, 3, {"text_encoder.q": (4, 4)}).layers
    ones = {path: (torch.ones(n), torch.ones(n)) for path, (_, n) in shapes.items()}
    needed = {"lorarar": {"hypernet": HyperNetwork([8])}, "ziplora": {"coefficients": ones}, "joint": {"adapter": c}}
    for method in METHODS.values():
        assert bool(method.needs) == (method.name in needed)
        merged = method.merge(c, s, dtype=torch.bfloat16, **needed.get(method.name, {}))
        assert isinstance(merged, Schedule if method.schedule else Adapter)
        adapter = merged.at(0) if method.schedule else merged
        assert adapter.layers.keys() == shapes.keys() and adapter.others.keys() == c.others.keys()
        assert all(t.dtype == torch.bfloat16 and not t.requires_grad for f in adapter.layers.values() for t in f)


@st.composite
def adapter_pairs(draw):
    """Two adapters with layers of their own and shared ones, of any shapes, ranks and dtypes."""
    shapes = draw(st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1))
    pair = []
    for seed in (1, 2):
        kept = draw(st.sets(st.sampled_from(sorted(shapes)), min_size=1))
        ranks, dtype = st.integers(1, 5), st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
        layers: dict[str, Factors] = {}
        for path in sorted(kept):
            layers |= make(draw(ranks), seed, {path: shapes[path]}).layers
        pair.append(Adapter(layers).to(draw(dtype)))
    return pair


weights = st.tuples(st.floats(-2, 2), st.floats(-2, 2))


@quick
@given(adapter_pairs(), weights)
def test_concatenation_is_exact_for_any_adapters(pair, weights):
    c, s = pair
    merged = METHODS["concat"].merge(c, s, weights=weights)
    assert_equal(merged, weighted_sum(c, s, weights), rtol=1e-4, atol=1e-4)
    assert all(rank == c.ranks.get(p, 0) + s.ranks.get(p, 0) for p, rank in merged.ranks.items())


@quick
@given(adapter_pairs(), weights, st.integers(1, 6))
def test_svd_is_the_best_of_its_rank_for_any_adapters(pair, weights, rank):
    merged = svd.merge(*pair, weights=weights, rank=rank)
    exact = weighted_sum(*pair, weights)
    assert max(merged.ranks.values()) <= rank
    best = sum(float(torch.linalg.svdvals(delta)[rank:].square().sum()) for delta in exact.values())
    lost = sum(float((merged.layers[p].delta - delta).square().sum()) for p, delta in exact.items())
    assert lost == pytest.approx(best, rel=1e-3, abs=1e-6 * sum(float(d.square().sum()) for d in exact.values()) + 1e-9)


@quick
@given(adapter_pairs(), st.floats(0, 10))
def test_nplora_goes_from_the_direct_merge_to_one_that_leaves_the_style_alone(pair, mu):
    c, s = pair
    direct, soft, hard = nplora.merge(c, s, mu=0), nplora.merge(c, s, mu=mu), nplora.merge(c, s, hard=True)
    assert_equal(direct, weighted_sum(c, s), rtol=1e-4, atol=1e-4)
    for path in direct.layers:
        between = (deltas(direct)[path] + mu * deltas(hard)[path]) / (1 + mu)
        torch.testing.assert_close(deltas(soft)[path], between, rtol=1e-4, atol=1e-4)
        if path in s.layers:  # on what the style reads, the merge is the style
            reads = deltas(s)[path]
            torch.testing.assert_close(deltas(hard)[path] @ reads.T, reads @ reads.T, rtol=1e-3, atol=1e-2)
        else:
            torch.testing.assert_close(deltas(hard)[path], deltas(c)[path])


@quick
@given(adapter_pairs(), st.sampled_from([*PEFT]), st.sampled_from(["factors", "delta"]), st.floats(0.05, 0.95))
def test_sparse_merges_depend_on_seed_and_layer_alone(pair, name, space, density):
    c, s = pair
    options = {"space": space, "density": density, "seed": 7}
    torch.manual_seed(1)
    merged = METHODS[name].merge(c, s, **options)
    torch.manual_seed(2)
    path = max(merged.layers)
    alone = [Adapter({path: a.layers[path]} if path in a.layers else {}) for a in (c, s)]
    again = METHODS[name].merge(*alone, **options)
    for one, other in zip(merged.layers[path], again.layers[path], strict=True):
        assert torch.equal(one, other)
    assert merged.layers.keys() == c.layers.keys() | s.layers.keys()


@quick
@given(adapter_pairs(), st.sampled_from([
    name for name, row in METHODS.items() if not (row.needs or row.schedule or name.endswith("_blocks"))
]))  # fmt: skip
def test_a_lazy_merge_of_any_adapters_is_finite_and_as_large_as_it_says(pair, name):
    merged = METHODS[name].merge(*pair)
    for path, blank in blanks(merged.layers).items():
        factors = merged.layers[path]
        assert [tensor.shape for tensor in factors] == [tensor.shape for tensor in blank]
        assert all(tensor.isfinite().all() for tensor in factors)
