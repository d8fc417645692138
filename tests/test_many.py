"""Merges of any number of adapters are their formulas on dense updates; the table of methods is right without torch."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter, Factors
from lorarar.merging.klora import Schedule
from lorarar.merging.registry import METHODS, methods
from lorarar.randomness import generator

SHAPES = {"q": (20, 24), "k": (16, 30)}
MANY = [name for name, row in METHODS.items() if row.many]
quick = settings(max_examples=20, deadline=None, derandomize=True)


def make(rank: int, seed: int, shapes: dict[str, tuple[int, int]] = SHAPES) -> Adapter:
    random = torch.Generator().manual_seed(seed)
    return Adapter(
        {
            path: Factors(torch.randn(rank, n, generator=random), torch.randn(m, rank, generator=random))
            for path, (m, n) in shapes.items()
        }
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Adapter], list[float]]:
    """Two to five adapters of any ranks, of which some lack a layer, and a weight for each."""
    count = draw(st.integers(2, 5))
    adapters = [make(draw(st.integers(1, 4)), seed) for seed in range(count)]
    for adapter in adapters:
        if draw(st.integers(0, 3)) == 0:
            del adapter.layers["k"]
    weights = draw(st.lists(st.floats(-2, 2).filter(lambda x: abs(x) > 0.01), min_size=count, max_size=count))
    return adapters, weights


def updates(adapters: Sequence[Adapter], path: str) -> list[Tensor]:
    """dW of every adapter in float64, zeros where it lacks the layer."""
    return [a.layers[path].delta.double() if path in a.layers else torch.zeros(SHAPES[path]).double() for a in adapters]


def total(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return sum((w * t for w, t in zip(weights, tensors, strict=True)), torch.zeros_like(tensors[0]))


def sparse(
    tensors: Sequence[Tensor], weights: Sequence[float], density: float, random: torch.Generator | None, elects: bool
) -> Tensor:
    """The published sparse merge of tensors: DARE with a stream of random numbers, else by magnitude."""
    kept = []
    for tensor in tensors:
        if random:
            kept.append(tensor * (torch.rand(tensor.shape, generator=random) < density) / density)
        else:
            threshold = tensor.abs().flatten().sort(descending=True)[0][int(density * tensor.numel()) - 1]
            kept.append(tensor * (tensor.abs() >= threshold))
    if not elects:
        return total(kept, weights)
    elected = torch.where(sum(kept) >= 0, 1.0, -1.0)
    agree = [(tensor.sign() == elected).to(tensor) for tensor in kept]
    voiced = [tensor * voice for tensor, voice in zip(kept, agree, strict=True)]
    return total(voiced, weights) / sum(agree).clamp(min=1)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-3)


@quick
@given(cases())
def test_sums_of_many_are_weighted_sums_of_updates(case: tuple[list[Adapter], list[float]]) -> None:
    adapters, weights = case
    for name in ("direct", "concat", "average", "core_sum"):
        merged = METHODS[name].merge(*adapters, weights=weights)
        for path, factors in merged.layers.items():
            close(factors.delta, total(updates(adapters, path), weights))
            assert factors.rank == sum(a.layers[path].rank for a in adapters if path in a.layers)
    mean = METHODS["average"].merge(*adapters)
    close(mean.layers["q"].delta, total(updates(adapters, "q"), [1 / len(adapters)] * len(adapters)))


@quick
@given(cases(), st.integers(1, 9))
def test_svd_of_many_is_the_best_of_its_rank(case: tuple[list[Adapter], list[float]], rank: int) -> None:
    adapters, weights = case
    merged = METHODS["svd"].merge(*adapters, weights=weights, rank=rank)
    for path, factors in merged.layers.items():
        u, sigma, vh = torch.linalg.svd(total(updates(adapters, path), weights), full_matrices=False)
        best = u[:, :rank] * sigma[:rank] @ vh[:rank]
        lost = (factors.delta - total(updates(adapters, path), weights)).norm()
        assert lost <= (best - total(updates(adapters, path), weights)).norm() + 1e-3 * sigma[0]
    ranks = METHODS["svd"].merge(*adapters).ranks
    assert ranks["q"] == max(a.layers["q"].rank for a in adapters)


@quick
@given(cases())
def test_balanced_sums_of_many_have_the_first_norm(case: tuple[list[Adapter], list[float]]) -> None:
    adapters, weights = case
    norms = [sum(float(f.delta.square().sum()) for f in a.layers.values()) ** 0.5 for a in adapters]
    merged = METHODS["balanced"].merge(*adapters, weights=weights)
    by_layer = METHODS["balanced_layers"].merge(*adapters, weights=weights)
    for path, factors in merged.layers.items():
        dense = updates(adapters, path)
        close(factors.delta, total(dense, [w * norms[0] / norm for w, norm in zip(weights, norms, strict=True)]))
        own = [float(d.norm()) for d in dense]
        ratios = [own[0] / norm if own[0] and norm else 1.0 for norm in own]
        close(by_layer.layers[path].delta, total(dense, [w * r for w, r in zip(weights, ratios, strict=True)]))


@quick
@given(cases(), st.floats(0.2, 0.9))
def test_sparse_merges_of_many_are_the_published_formulas(
    case: tuple[list[Adapter], list[float]], density: float
) -> None:
    adapters, weights = case
    for name, (randomly, elects) in {
        "dare": (True, False), "ties": (False, True), "dare_ties": (True, True), "magnitude_prune": (False, False),
    }.items():  # fmt: skip
        options = {"weights": weights, "density": density, "seed": 3}
        dense = METHODS[name].merge(*adapters, space="delta", rank=20, **options)
        padded = METHODS[name].merge(*adapters, **options)
        for path in dense.layers:
            random = generator(3, *path.encode()) if randomly else None
            expected = sparse([d.float() for d in updates(adapters, path)], weights, density, random, elects)
            close(dense.layers[path].delta, expected)
            random = generator(3, *path.encode()) if randomly else None
            parts = [a.layers.get(path) or Factors(torch.zeros(0, SHAPES[path][1]), torch.zeros(SHAPES[path][0], 0))
                     for a in adapters]  # fmt: skip
            most = max(part.rank for part in parts)
            downs = [torch.cat([p.down, torch.zeros(most - p.rank, p.down.shape[1])]) for p in parts]
            ups = [torch.cat([p.up, torch.zeros(len(p.up), most - p.rank)], 1) for p in parts]
            signed, roots = [abs(w) ** 0.5 * (1 if w > 0 else -1) for w in weights], [abs(w) ** 0.5 for w in weights]
            down = sparse(downs, signed, density, random, elects)
            close(padded.layers[path].delta, sparse(ups, roots, density, random, elects) @ down)


@quick
@given(cases())
def test_merges_between_common_bases_of_many_are_the_dense_formulas(case: tuple[list[Adapter], list[float]]) -> None:
    adapters, weights = case
    found = {name: METHODS[name].merge(*adapters) for name in ("tsv", "iso_c")}
    # all entries stay and agree or not: the result in any basis of the whole space is that of the formula there
    sums = METHODS["core_dare"].merge(*adapters, weights=weights, density=1.0)
    for path in found["tsv"].layers:
        close(sums.layers[path].delta, total(updates(adapters, path), weights))
        thin = [torch.linalg.svd(d, full_matrices=False) for d in updates(adapters, path) if d.any()]
        ranks = [int((sigma > 1e-4 * sigma[0]).sum()) for _, sigma, _ in thin]
        us = torch.cat([u[:, :r] for (u, _, _), r in zip(thin, ranks, strict=True)], 1)
        vhs = torch.cat([vh[:r] for (_, _, vh), r in zip(thin, ranks, strict=True)])
        sigmas = torch.cat([sigma[:r] for (_, sigma, _), r in zip(thin, ranks, strict=True)])
        if us.shape[1] <= min(SHAPES[path]) // 2:  # the polar factor is far from singular
            polar = [side @ torch.linalg.inv(matrix_root(side.T @ side)) for side in (us, vhs.T)]
            close(found["tsv"].layers[path].delta, polar[0] * sigmas @ polar[1].T)
            u, sigma, vh = torch.linalg.svd(sum(updates(adapters, path)), full_matrices=False)
            k = int((sigma > 1e-4 * sigma[0]).sum())
            close(found["iso_c"].layers[path].delta, sigma[:k].mean() * u[:, :k] @ vh[:k])


def matrix_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.sqrt() @ vectors.T


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("name", ["core_ties", "knots_ties"])
def test_sign_elections_between_common_bases_of_many_are_the_dense_formulas(name: str, count: int) -> None:
    adapters, weights = [make(2, seed) for seed in range(count)], [1.0, 0.7, 0.5, 0.9, 0.3][:count]
    merged = METHODS[name].merge(*adapters, weights=weights, density=0.4)
    for path, (m, n) in SHAPES.items():
        dense, k = updates(adapters, path), min(2 * count, m, n)
        thin = [torch.linalg.svd(d, full_matrices=False) for d in dense]
        if name == "knots_ties":
            u, v = torch.linalg.svd(torch.cat(dense, 1))[0][:, :k], torch.eye(n).double()
        else:
            u = torch.linalg.svd(torch.cat([u[:, :2] * s[:2].sqrt() for u, s, _ in thin], 1))[0][:, :k]
            v = torch.linalg.svd(torch.cat([s[:2].sqrt()[:, None] * vh[:2] for _, s, vh in thin]))[2][:k].T
        inner = sparse([(u.T @ d @ v).float() for d in dense], weights, 0.4, None, True)
        close(merged.layers[path].delta, u @ inner.double() @ v.T)


@pytest.mark.parametrize("name", [name for name in MANY if name not in ("dare", "dare_ties", "core_dare",
                                  "core_dare_ties", "balanced", "balanced_layers", "switch")])  # fmt: skip
def test_order_does_not_matter_where_the_formula_has_none(name: str) -> None:
    """Left out: random masks, which are drawn in order; norms of the first; turns."""
    adapters = [make(rank, seed) for seed, rank in enumerate((3, 1, 2))]
    options = {"rank": 4} if name == "svd" else {}
    before, after = METHODS[name].merge(*adapters, **options), METHODS[name].merge(*reversed(adapters), **options)
    for path in SHAPES:
        close(before.layers[path].delta, after.layers[path].delta)


@pytest.mark.parametrize("name", ["direct", "concat", "average", "core_sum", "svd", "magnitude_prune", "balanced",
                                  "balanced_layers"])  # fmt: skip
def test_a_weight_of_zero_removes_an_adapter(name: str) -> None:
    """Left out: masks and signs that an adapter of weight 0 has a part in; commands and recipes leave it out first."""
    adapters = [make(rank, seed) for seed, rank in enumerate((3, 2, 2))]
    options = {"rank": 3} if name == "svd" else {}
    with_zero = METHODS[name].merge(*adapters, weights=(0.7, -0.4, 0.0), **options)
    without = METHODS[name].merge(*adapters[:2], weights=(0.7, -0.4), **options)
    for path in SHAPES:
        close(with_zero.layers[path].delta, without.layers[path].delta)


@pytest.mark.parametrize("name", [name for name in MANY if name != "switch"])
def test_a_single_adapter_goes_through_every_method_of_many(name: str) -> None:
    one = make(2, 1)
    options = {"density": 1.0} if "density" in METHODS[name].options else {}
    merged = METHODS[name].merge(one, **options)
    expected = {path: factors.delta for path, factors in one.layers.items()}
    if name == "iso_c":
        for path, delta in expected.items():
            u, sigma, vh = torch.linalg.svd(delta, full_matrices=False)
            expected[path] = sigma[:2].mean() * u[:, :2] @ vh[:2]
    for path, delta in expected.items():
        close(merged.layers[path].delta, delta)


@pytest.mark.parametrize("steps", [6, 50])
def test_switch_gives_each_of_many_its_turn(steps: int, tmp_path: Path) -> None:
    adapters = [make(rank, seed, {"q": (8, 8), "k": (8, 9)}) for seed, rank in enumerate((1, 2, 3))]
    del adapters[0].layers["k"]
    for seed, adapter in enumerate(adapters):
        adapter.others = make(1, seed, {"text_encoder.q": (4, 4)}).layers
    METHODS["switch"].merge(*adapters, period=2 / steps).save(tmp_path / "s.safetensors")
    schedule = Schedule.load(tmp_path / "s.safetensors")
    for step in range(steps):
        layers = schedule.at(step / steps)
        assert layers.layers["q"].rank == [1, 2, 3][step // 2 % 3]
        assert layers.layers["k"].rank == [2, 3][step // 2 % 2], "a layer takes turns among those that have it"
    summed = sum(adapter.others["text_encoder.q"].delta for adapter in adapters)
    close(layers.others["text_encoder.q"].delta, summed)
    with pytest.raises(UserError, match="two adapters or more"):
        METHODS["switch"].merge(adapters[0])


@pytest.mark.parametrize("name", [name for name in METHODS if name not in MANY])
def test_methods_of_a_pair_refuse_others_in_one_line(name: str) -> None:
    for count in (1, 3):
        with pytest.raises(UserError, match=f"method {name}: takes two adapters, a content and a style, not {count}"):
            METHODS[name].merge(*[make(1, seed) for seed in range(count)])


def test_wrong_weights_and_shapes_of_many_are_told_in_one_line() -> None:
    three = [make(1, seed) for seed in range(3)]
    with pytest.raises(UserError, match=r"weights \(1, 2\): give 3 numbers, as in \(0\.7, 0\.5, 0\.3\)"):
        METHODS["ties"].merge(*three, weights=(1, 2))
    other = make(1, 9, {"q": (20, 25)})
    with pytest.raises(UserError, match="layer q is 20 x 24 and 20 x 25 in the 4 adapters"):
        METHODS["direct"].merge(*three, other)


@pytest.mark.parametrize("name", METHODS)
def test_rows_state_the_options_of_their_functions(name: str) -> None:
    module, _, function = METHODS[name].function.partition(":")
    parameters = inspect.signature(getattr(import_module(module), function)).parameters
    defaults = {p.name: p.default for p in parameters.values() if p.default is not p.empty and p.name != "dtype"}
    assert METHODS[name].options == defaults
    assert METHODS[name].many == any(p.kind is p.VAR_POSITIONAL for p in parameters.values())


@pytest.mark.parametrize("words", [["methods"], ["--help"], ["merge", "--help"]])
def test_the_table_and_the_help_come_without_torch(words: list[str]) -> None:
    code = f"import sys; from lorarar.cli import app; app({words}, standalone_mode=False); "
    done = subprocess.run(
        [sys.executable, "-c", code + "assert 'torch' not in sys.modules"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


PACKAGE = """
from lorarar.merging.registry import Method
ROW = Method({name!r}, "Difference", "", True, "", "other_package.formula:difference", {{"share": 1.0}})
"""
FORMULA = """
import torch
from lorarar.merging import columns
def difference(content, style, *, share=1.0, dtype=torch.float32):
    return columns.merge(content, style, {}, default=(1.0, -share), dtype=dtype)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a package with an entry point of a name and a value."""

    def install(name: str, value: str = "other_package:ROW", row: str | None = None) -> None:
        for folder in ("other_package", "other_package-1.0.dist-info"):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "other_package/__init__.py").write_text(PACKAGE.format(name=row or name))
        (tmp_path / "other_package/formula.py").write_text(FORMULA)
        metadata = tmp_path / "other_package-1.0.dist-info"
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[lorarar.methods]\n{name} = {value}\n")
        monkeypatch.syspath_prepend(tmp_path)
        for module in ("other_package", "other_package.formula"):
            monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def test_another_package_adds_a_method(package) -> None:
    import lorarar

    package("difference")
    assert [*methods()] == [*METHODS, "difference"]
    assert "other_package.formula" not in sys.modules, "the table imports no formula"
    one, other = make(2, 1), make(3, 2)
    merged = lorarar.merge(one, other, method="difference", share=0.5)
    for path in SHAPES:
        close(merged.layers[path].delta, one.layers[path].delta - 0.5 * other.layers[path].delta)


@pytest.mark.parametrize("words, message", [
    ({"name": "ties"}, "method ties of package other-package: the name is taken already; uninstall"),
    ({"name": "new", "value": "other_package:NOTHING"}, "method new .* cannot be loaded .*NOTHING"),
    ({"name": "new", "value": "other_package.formula:difference"}, "method new .* is no Method of that name"),
    ({"name": "new", "row": "old"}, "method new .* is no Method of that name"),
])  # fmt: skip
def test_mistakes_of_another_package_are_one_line(package, words: dict[str, str], message: str) -> None:
    package(**words)
    with pytest.raises(UserError, match=message) as caught:
        methods()
    assert "\n" not in str(caught.value)
