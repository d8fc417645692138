"""Adapters travel through files unchanged, and damaged files are refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorarar.adapter import Adapter, Factors
from lorarar.errors import UserError

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


def test_text_encoder_layers_are_left_out_and_named(tmp_path, caplog):
    factors = adapter().layers[PATH]
    tensors = {f"unet.{PATH}.lora.down.weight": factors.down, f"unet.{PATH}.lora.up.weight": factors.up}
    save_file({**tensors, "text_encoder.x.lora.down.weight": torch.ones(1, 1)}, tmp_path / "a.safetensors")
    assert list(Adapter.load(tmp_path / "a.safetensors").layers) == [PATH]
    assert "text_encoder.x" in caplog.text


DOWN, UP = f"unet.{PATH}.lora.down.weight", f"unet.{PATH}.lora.up.weight"


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({DOWN: torch.ones(2, 6)}, "no `up` matrix"),
        ({UP: torch.ones(4, 2)}, "no `down` matrix"),
        ({DOWN: torch.ones(2, 6), UP: torch.ones(4, 3)}, "share no rank"),
        ({DOWN: torch.ones(2, 6, 3, 3), UP: torch.ones(4, 2, 1, 1)}, "convolution"),
        ({f"unet.{PATH}.lora_magnitude_vector": torch.ones(4)}, "not part of a plain LoRA"),
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
