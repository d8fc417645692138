"""The files of tests/writers.py: shapes and meaning. tests/test_layouts.py has who reads them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from tests.loaders import linear_or_conv
from tests.writers import WRITERS, Update, cloneofsimo

BASES = ("sd15", "sd21", "sdxl")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("base", BASES)
def test_each_file_has_the_shapes_of_its_base(name: str, base: str) -> None:
    written = WRITERS[name](base, 2, seed=1)
    for layer, update in written.truth.items():
        component, _, path = layer.partition(".")
        rows, columns, *kernel = linear_or_conv(base, component)[path].weight.shape
        assert (update.up.shape[:2], update.down.shape[:2]) == ((rows, 2), (2, columns))
        assert list((update.down if update.mid is None else update.mid).shape[2:]) == kernel
    factors = sum(2 + (update.mid is not None) for update in written.truth.values())
    others = [key for key in written.tensors if key.endswith(".alpha") or key.startswith("bundle_emb")]
    assert factors + len(others) == len(written.tensors)


@pytest.mark.parametrize("name", ["kohya", "diffusers", "peft"])
def test_seeds_repeat(name: str) -> None:
    first, again, other = (WRITERS[name]("sd15", 2, seed=seed).tensors for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(*(next(iter(tensors.values())) for tensors in (first, other)))


@pytest.mark.parametrize("mid", [False, True])
def test_dense_is_what_the_convolutions_do_one_after_the_other(mid: bool) -> None:
    torch.manual_seed(0)
    middle = torch.randn(2, 2, 3, 3, dtype=torch.float64) if mid else None
    down = torch.randn(2, 5, *((1, 1) if mid else (3, 3)), dtype=torch.float64)
    update = Update(down, torch.randn(4, 2, 1, 1, dtype=torch.float64), 0.5, middle)
    picture = torch.randn(1, 5, 6, 6, dtype=torch.float64)
    inner = conv2d(picture, down, padding=0 if mid else 1)
    inner = conv2d(inner, middle, padding=1) if middle is not None else inner
    expected = 0.5 * conv2d(inner, update.up)
    assert torch.allclose(conv2d(picture, update.dense(), padding=1), expected)


def test_dense_is_what_linear_layers_do() -> None:
    torch.manual_seed(0)
    update = Update(torch.randn(2, 5), torch.randn(4, 2), 2.0)
    x = torch.randn(3, 5)
    assert torch.allclose(x @ update.dense().T, 2 * (x @ update.down.T @ update.up.T), atol=1e-5)


def test_alpha_is_in_the_file_or_folded_or_in_the_configuration() -> None:
    kohya = WRITERS["kohya"]("sd15", 4, seed=0)
    assert {tensor.item() for key, tensor in kohya.tensors.items() if key.endswith(".alpha")} == {2.0}
    assert {update.scale for update in kohya.truth.values()} == {0.5}
    folded = WRITERS["onetrainer-diffusers"]("sd15", 4, seed=0)
    assert {update.scale for update in folded.truth.values()} == {1.0}
    peft = WRITERS["peft"]("sd15", 4, seed=0)
    assert peft.sidecar is not None and (peft.sidecar["r"], peft.sidecar["lora_alpha"]) == (4, 8.0)


def test_the_list_of_cloneofsimo_alternates_up_and_down() -> None:
    layers = cloneofsimo("sd15", 4, seed=0)
    assert len(layers) == 2 * (128 + 16)
    assert all(up.shape[1] == down.shape[0] == 4 for up, down in zip(layers[::2], layers[1::2], strict=True))
