"""Extracting a LoRA from two checkpoints: against the LoRA that was baked, and a dense SVD."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from checkpoints import dense, encoder, lora, pipeline, single_file, update, weights, write
from safetensors.torch import load_file
from test_cli import fails, run
from torch import Tensor

from lorarar.bake import bake_files
from lorarar.lora.adapter import Adapter


def checkpoint(folder: Path, layout: str) -> Path:
    if layout == "pipeline":
        return pipeline(folder / "base")
    if layout == "single file":
        return write(folder / "base.safetensors", single_file(weights(), encoder(1), encoder(2)))
    return write(folder / "base.safetensors", weights())


def differences(tuned: Path, base: Path) -> dict[str, Tensor]:
    after, before = dense(tuned), dense(base)
    return {name: after[name] - before[name] for name in after}


def error_of(out: Path, exact: dict[str, Tensor]) -> float:
    kept = Adapter.load(out).matrices
    lost = sum(
        float((matrix - (update(kept[name]) if name in kept else 0)).square().sum()) for name, matrix in exact.items()
    )
    return (lost / sum(float(matrix.square().sum()) for matrix in exact.values())) ** 0.5


@pytest.mark.parametrize("layout", ["pipeline", "single file", "UNet"])
def test_what_was_baked_comes_back(tmp_path: Path, monkeypatch, capsys, layout: str) -> None:
    base, given = checkpoint(tmp_path, layout), lora(4, 1, encoders=layout != "UNet")
    given.save(tmp_path / "cat.safetensors")
    tuned, out = tmp_path / f"tuned{base.suffix}", tmp_path / "lora.safetensors"
    bake_files(base, [str(tmp_path / "cat.safetensors")], tuned)
    assert run(monkeypatch, "extract", tuned, base, "-o", out, "--rank", "4") == 0
    found = Adapter.load(out)
    assert found.layers.keys() == given.layers.keys() and found.others.keys() == given.others.keys()
    lost = whole = 0.0
    for name, factors in given.matrices.items():
        lost += float((update(factors) - update(found.matrices[name])).square().sum())
        whole += float(update(factors).square().sum())
        assert found.matrices[name].rank == min(4, *update(factors).shape)
    assert (lost / whole) ** 0.5 < 1e-5
    assert {name: f.down.shape for name, f in found.others.items()} == {
        n: f.down.shape for n, f in given.others.items()
    }
    shown = capsys.readouterr()
    assert "differ" not in shown.err and "one checkpoint only" not in shown.err and "diffusers format" in shown.out


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("words", [("--rank", 3), ("--energy", 0.8), ("--energy", 0.99, "--max-rank", 5)])
def test_the_error_is_the_one_measured(tmp_path: Path, monkeypatch, capsys, dtype: str, words) -> None:
    random = torch.Generator().manual_seed(1)
    base = write(tmp_path / "base.safetensors", weights())
    tuned, out = tmp_path / "tuned.safetensors", tmp_path / "lora.safetensors"
    write(
        tuned,
        {
            key: tensor + 0.01 * torch.randn(tensor.shape, generator=random) if key.endswith("weight") else tensor
            for key, tensor in weights().items()
            if tensor.ndim > 1
        },
    )
    assert run(monkeypatch, "extract", tuned, base, "-o", out, *words, "--dtype", dtype, "--format", "kohya") == 0
    exact = differences(tuned, base)
    error, found = error_of(out, exact), Adapter.load(out)
    assert float(found.metadata["relative_error"]) == pytest.approx(error, rel=1e-4)
    assert f"relative error {error:.3g}" in capsys.readouterr().err
    for name, matrix in exact.items():
        sigma = torch.linalg.svdvals(matrix)
        rank, shares = found.matrices[name].rank, sigma.square().cumsum(0) / sigma.square().sum()
        best = sigma[rank:].norm()
        assert (matrix - update(found.matrices[name])).norm() < 1.01 * best + 1e-3 * matrix.norm()
        wanted = int((shares < words[1]).sum()) + 1 if words[0] == "--energy" else words[1]
        assert rank == min(wanted, len(sigma), words[3] if len(words) > 2 else wanted)


def test_layouts_can_differ_and_nothing_is_lost_in_silence(tmp_path: Path, monkeypatch, capsys) -> None:
    base, out = pipeline(tmp_path / "base"), tmp_path / "lora.safetensors"
    changed = weights()
    changed["mid_block.attentions.0.proj_in.weight"] += torch.outer(torch.arange(64.0), torch.ones(64)) / 100
    changed["mid_block.attentions.0.proj_in.bias"] += 0.25
    changed["conv_out.bias"] += 0.5
    tuned = write(tmp_path / "tuned.safetensors", single_file(changed, encoder(1), encoder(2)))
    assert run(monkeypatch, "extract", tuned, base, "-o", out, "--rank", "1") == 0
    found, text = Adapter.load(out), capsys.readouterr().err
    assert [*found.matrices] == ["mid_block.attentions.0.proj_in"]
    exact = differences(tuned, base)["mid_block.attentions.0.proj_in"]
    assert torch.allclose(update(found.layers["mid_block.attentions.0.proj_in"]), exact, atol=1e-5)
    held = 64 * 0.25**2 + 4 * 0.5**2
    share = held / (held + float(exact.square().sum()))
    assert f"2 differ, with {share:.3g} of the squared difference" in text
    assert "such as mid_block.attentions.0.proj_in.bias, conv_out.bias" in text
    assert "226 layers are equal in both checkpoints" in text
    number = re.search(r"(\d+) tensors are in one checkpoint only", text)
    norms = sum("norm" in key for key in weights())
    assert number and int(number[1]) == 2 * norms + 3, "norms have other names; ids of positions, the VAE's tensors"


def test_a_checkpoint_in_fp8_makes_a_lora_in_fp16(tmp_path: Path, monkeypatch) -> None:
    tensors = weights(torch.float8_e4m3fn)
    base = write(tmp_path / "base.safetensors", tensors)
    other = {key: (2 * tensor.float()).to(tensor.dtype) for key, tensor in tensors.items()}
    tuned, out = write(tmp_path / "tuned.safetensors", other), tmp_path / "lora.safetensors"
    assert run(monkeypatch, "extract", tuned, base, "-o", out, "--energy", "1") == 0
    assert {tensor.dtype for tensor in load_file(out).values()} == {torch.float16}
    assert error_of(out, differences(tuned, base)) < 1e-3


def test_mistakes_end_with_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    base, out = write(tmp_path / "base.safetensors", weights()), tmp_path / "lora.safetensors"

    def refused(tensors: dict[str, Tensor], *words: object) -> str:
        tuned = write(tmp_path / "tuned.safetensors", tensors)
        error = fails(monkeypatch, capsys, "extract", tuned, base, "-o", out, *(words or ("--rank", 2)))
        assert not out.exists()
        return error

    assert "have equal layers: there is no LoRA" in refused(weights())
    biased = weights()
    biased["conv_out.bias"] += 1
    assert "only 1 biases, norms or other tensors differ, such as conv_out.bias" in refused(biased)
    other = weights()
    other["conv_in.weight"] = torch.zeros(32, 9, 3, 3)
    assert "conv_in is (32, 9, 3, 3) in" in refused(other)
    other["conv_in.weight"] = torch.full((32, 4, 3, 3), float("nan"))
    assert "conv_in holds NaN" in refused(other)
    assert "have no layer in common" in refused(encoder(1))
    assert "give one of them" in refused(biased, "--dtype", "fp16")
    assert "no such file" in fails(monkeypatch, capsys, "extract", tmp_path / "no", base, "-o", out, "--rank", 1)
    words = ("extract", tmp_path / "tuned.safetensors", base, "-o", base, "--rank", 1, "--force")
    assert "is one of the inputs" in fails(monkeypatch, capsys, *words)
