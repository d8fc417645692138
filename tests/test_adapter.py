"""Adapters travel through files unchanged, and damaged files are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.container import write_tensors

PATH = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def adapter(rank: int = 2, dtype: torch.dtype = torch.float16) -> Adapter:
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(rank, 6, generator=generator), torch.randn(4, rank, generator=generator)
    return Adapter({PATH: Factors(down.to(dtype), up.to(dtype))}, {"subject": "dog8", "style": "wooden"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip_is_exact(tmp_path, dtype):
    before = adapter(dtype=dtype)
    before.save(tmp_path / "a.safetensors")
    after = Adapter.load(tmp_path / "a.safetensors")
    assert after.metadata == before.metadata
    assert after.ranks == {PATH: 2}
    assert after.layers[PATH].down.dtype == dtype
    assert torch.equal(after.layers[PATH].down, before.layers[PATH].down)
    assert torch.equal(after.layers[PATH].up, before.layers[PATH].up)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_files_are_those_of_the_library(tmp_path, dtype):
    tensors = {"b": torch.randn(3, 5).to(dtype), "a": torch.randn(7).to(dtype), "none": torch.empty(0, 4, dtype=dtype)}
    tensors["number"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "library.safetensors", {"key": 'text with "quotes", \u00e4 and \n'})
    write_tensors(tmp_path / "ours.safetensors", tensors, {"key": 'text with "quotes", \u00e4 and \n'})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "library.safetensors").read_bytes()


def test_equal_adapters_make_equal_bytes(tmp_path):
    """Though safetensors itself writes metadata in a new order each time."""
    one = adapter()
    one.metadata = {key: key for key in "abcdefgh"}
    files = [tmp_path / f"{i}.safetensors" for i in range(5)]
    for file in files:
        one.save(file)
    assert len({file.read_bytes() for file in files}) == 1
    assert Adapter.load(files[0]).metadata == one.metadata


def test_keys_are_those_of_diffusers(tmp_path):
    adapter().save(tmp_path / "a.safetensors")
    assert sorted(load_file(tmp_path / "a.safetensors")) == [
        f"unet.{PATH}.lora.down.weight",
        f"unet.{PATH}.lora.up.weight",
    ]


@pytest.mark.parametrize(
    "down, up",
    [
        ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight"),
        ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight"),
        ("unet.unet.{}.lora.down.weight", "unet.unet.{}.lora.up.weight"),
    ],
)
def test_spellings_of_diffusers_are_read(tmp_path, down, up):
    factors = adapter().layers[PATH]
    save_file({down.format(PATH): factors.down, up.format(PATH): factors.up}, tmp_path / "a.safetensors")
    assert torch.equal(Adapter.load(tmp_path / "a.safetensors").layers[PATH].delta, factors.delta)


def test_alpha_is_folded_once(tmp_path):
    factors = adapter(rank=4, dtype=torch.float32).layers[PATH]
    tensors = {f"unet.{PATH}.lora_A.weight": factors.down, f"unet.{PATH}.lora_B.weight": factors.up}
    configuration = json.dumps({"unet.r": 4, "unet.lora_alpha": 2})
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": configuration})
    loaded = Adapter.load(tmp_path / "a.safetensors")
    assert torch.equal(loaded.layers[PATH].delta, factors.delta / 2)

    loaded.save(tmp_path / "b.safetensors")
    assert torch.equal(Adapter.load(tmp_path / "b.safetensors").layers[PATH].delta, factors.delta / 2)

    save_file({**tensors, f"unet.{PATH}.alpha": torch.tensor(1.0)}, tmp_path / "c.safetensors")
    assert torch.equal(Adapter.load(tmp_path / "c.safetensors").layers[PATH].delta, factors.delta / 4)


def test_what_is_not_merged_is_kept_apart(tmp_path):
    convolution = Factors(torch.rand(2, 6, 3, 3), torch.rand(4, 2, 1, 1))
    others = {"unet.conv_in": convolution, "text_encoder_2.text_projection": adapter().layers[PATH]}
    before = Adapter(adapter().layers, others=others)
    before.save(tmp_path / "a.safetensors")
    after = Adapter.load(tmp_path / "a.safetensors")
    assert list(after.layers) == [PATH] and after.others.keys() == others.keys()
    assert torch.equal(after.others["unet.conv_in"].up, convolution.up)
    assert {factor.dtype for factors in after.to(torch.bfloat16).others.values() for factor in factors} == {
        torch.bfloat16
    }
    assert (before.format, after.format, after.to(torch.float32).format) == ("", "diffusers", "diffusers")


def test_files_are_written_in_the_dtype_asked_for(tmp_path):
    adapter(dtype=torch.float32).save(tmp_path / "a.safetensors", dtype=torch.bfloat16)
    assert Adapter.load(tmp_path / "a.safetensors").layers[PATH].down.dtype == torch.bfloat16


def test_updates_of_convolutions():
    """down finds r features, up mixes them: two convolutions in a row are the one with dW."""
    factors = Factors(torch.rand(2, 6, 3, 3), torch.rand(4, 2, 1, 1))
    x = torch.rand(1, 6, 8, 8)
    in_a_row = torch.conv2d(torch.conv2d(x, factors.down), factors.up)
    torch.testing.assert_close(torch.conv2d(x, factors.delta), in_a_row)


@pytest.mark.parametrize("shapes", [((3, 5), (4, 3)), ((2, 6, 3, 3), (4, 2, 1, 1)), ((0, 5), (4, 0))])
def test_norms_are_those_of_the_updates(shapes):
    factors = Factors(*(torch.randn(shape) for shape in shapes))
    assert factors.norm == pytest.approx(float(factors.delta.norm()))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells where memory lies on Linux alone")
def test_files_are_mapped_not_copied(tmp_path):
    """An adapter of SDXL has hundreds of MB, of which a merge may need one layer at a time."""
    adapter().save(tmp_path / "a.safetensors")
    down, up = Adapter.load(tmp_path / "a.safetensors").layers[PATH]
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    places = [
        [int(end, 16) for end in line[0].split("-")] for line in maps if line[-1] == str(tmp_path / "a.safetensors")
    ]
    assert places
    for tensor in (down, up):
        assert any(start <= tensor.data_ptr() < end for start, end in places)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_are_checked_when_asked(value):
    damaged = adapter()
    damaged.check("a.safetensors")
    damaged.others["unet.conv_in"] = Factors(torch.ones(1, 2, 3, 3), torch.full((4, 1, 1, 1), value))
    with pytest.raises(UserError, match=r"a\.safetensors: layer unet\.conv_in holds NaN or infinity"):
        damaged.check("a.safetensors")


DOWN, UP = f"unet.{PATH}.lora.down.weight", f"unet.{PATH}.lora.up.weight"


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({DOWN: torch.ones(2, 6)}, "no `up` matrix"),
        ({UP: torch.ones(4, 2)}, "no `down` matrix"),
        ({DOWN: torch.ones(2, 6), UP: torch.ones(4, 3)}, "share no rank"),
        ({DOWN: torch.ones(2, 6, 3, 3), UP: torch.ones(4, 2)}, "neither a linear layer nor a convolution"),
        ({DOWN: torch.ones(2, 6, 3, 3), UP: torch.ones(4, 2, 3, 3)}, "neither a linear layer nor a convolution"),
        ({DOWN: torch.ones(2, 6), UP: torch.ones(4, 2), f"unet.{PATH}.alpha": torch.ones(2)}, "is no number"),
        ({DOWN: torch.ones(2, 6), f"unet.{DOWN}": torch.ones(2, 6)}, "second `down` of its layer"),
        ({DOWN: torch.ones(2, 6), UP: torch.ones(4, 2), f"unet.{PATH}.bias": torch.ones(4)}, r"bias is not part of"),
        ({f"unet.{PATH}.lora_magnitude_vector": torch.ones(4)}, "is DoRA, which depends on the base's weights"),
        ({"something.else": torch.ones(4)}, "no UNet LoRA"),
    ],
)
def test_what_cannot_be_right_is_refused(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        Adapter.load(tmp_path / "bad.safetensors")
    assert "bad.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_and_missing_files_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match=r"a\.safetensors: no such file"):
        Adapter.load(path)
    adapter().save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"a\.safetensors: not a readable safetensors file"):
        Adapter.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"a\.safetensors: not a readable safetensors file"):
        Adapter.load(path)
