"""What the benches compare is the same computation."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from bench.full_size import by_hand, formulas, in_float32, random_adapter
from bench.training import Setting, contestants
from lorarar.merging.hypernet import HyperNetwork
from lorarar.merging.registry import METHODS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "bench").glob("*.py")))
def test_every_bench_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests/study")  # whose server the bench of the study runs
    importlib.import_module(f"bench.{name}")


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_step_of_the_released_algorithm_has_our_loss(tiny, checkpointed):
    setting = Setting(tiny, 4, tiny.latent_shape[1], checkpointed)
    for sides in contestants(setting).values():
        assert sides["ours"]() == pytest.approx(sides["released"](), rel=1e-4)


@torch.no_grad()
def test_exact_methods_predict_what_the_factors_by_hand_do(tiny):
    content, style = random_adapter(tiny, 1, 3), random_adapter(tiny, 2, 3)
    random = torch.Generator().manual_seed(3)
    fitted = {path: tuple(torch.rand(2, f.down.shape[1], generator=random)) for path, f in content.layers.items()}
    options = {"lorarar": {"hypernet": HyperNetwork.for_adapter(content)}, "ziplora": {"coefficients": fitted}}
    expected = formulas(content, style, options)
    assert expected.keys() <= {name for name, method in METHODS.items() if method.exact}
    given = torch.randn(1, *tiny.latent_shape, generator=random), torch.tensor([500]), tiny.encode_prompts(["a dog"])
    with in_float32(tiny):
        for name, update in expected.items():
            with tiny.applied(METHODS[name].merge(content, style, **options.get(name, {}))):
                found = tiny.predict(*given)
            with by_hand(tiny.unet, update):
                torch.testing.assert_close(found, tiny.predict(*given), rtol=1e-4, atol=1e-5)
