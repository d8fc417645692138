"""Baking LoRAs into checkpoints: against dense sums, in each dtype and layout."""

from __future__ import annotations

import json
import math
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import dense, encoder, lora, pipeline, single_file, unet, update, weights, write
from safetensors.torch import load_file, save_file
from test_cli import fails, run

from lorarar.bake import bake_files, parse
from lorarar.extract import extract_files
from lorarar.files import sha256
from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.checkpoint_file import Checkpoint
from lorarar.resize import Size
from tests.writers import TRANSFORMER_WRITERS, TRANSFORMERS, original_names, tiny


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A single file with a UNet, two text encoders and a VAE, by the original names."""
    return write(tmp_path / "base.safetensors", single_file(weights(), encoder(1), encoder(2)))


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    lora(4, 1).save(tmp_path / "cat.safetensors", "kohya-sgm")
    return tmp_path / "cat.safetensors"


def rounding(text: str) -> float:
    found = re.search(r"rounding error (\S+) of the update", text)
    assert found, text
    return float(found[1])


def test_updates_of_two_loras_are_added_with_their_weights(tmp_path: Path, whole, cat, monkeypatch, capsys) -> None:
    oil, out = tmp_path / "oil.safetensors", tmp_path / "out.safetensors"
    lora(2, 2, encoders=False).save(oil)
    assert run(monkeypatch, "bake", whole, f"{cat}:0.7", f"{oil}:-1.5", "-o", out) == 0
    before, after, first, second = dense(whole), dense(out), Adapter.load(cat).matrices, Adapter.load(oil).matrices
    assert after.keys() == before.keys() == first.keys()
    for layer, weight in before.items():
        exact = weight + 0.7 * update(first[layer]) - (1.5 * update(second[layer]) if layer in second else 0)
        assert torch.allclose(after[layer], exact, atol=1e-6), layer
    old, new = load_file(whole), load_file(out)
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert old.keys() == new.keys() and not any("norm" in key or key.endswith("bias") for key in changed)
    metadata = Checkpoint.open(out).metadata[out]
    assert metadata["format"] == "pt" and metadata["note"] == "kept"
    assert json.loads(metadata["lorarar.baked"]) == [
        {"file": "cat.safetensors", "sha256": sha256(cat), "weight": 0.7},
        {"file": "oil.safetensors", "sha256": sha256(oil), "weight": -1.5},
    ]
    assert f"{len(first)} layers changed by 2 LoRAs" in capsys.readouterr().out
    again = tmp_path / "again.safetensors"
    assert run(monkeypatch, "bake", whole, f"{cat}:0.7", f"{oil}:-1.5", "-o", again) == 0
    assert again.read_bytes() == out.read_bytes()


def test_the_picture_of_the_baked_unet_is_that_of_the_lora(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet().save_pretrained(tmp_path / "unet")
    lora(4, 1, encoders=False).save(tmp_path / "cat.safetensors")
    bake_files(tmp_path / "unet", [f"{tmp_path / 'cat.safetensors'}"], tmp_path / "baked")
    adapted = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    adapted.load_lora_adapter(load_file(tmp_path / "cat.safetensors"), prefix="unet")
    random = torch.Generator().manual_seed(0)
    sample, text = torch.randn(1, 4, 8, 8, generator=random), torch.randn(1, 5, 32, generator=random)
    added = {"text_embeds": torch.randn(1, 16, generator=random), "time_ids": torch.ones(1, 6)}
    with torch.no_grad():
        plain, with_lora, baked = (
            model(sample, 500, text, added_cond_kwargs=added).sample
            for model in (unet(), adapted, UNet2DConditionModel.from_pretrained(tmp_path / "baked"))
        )
    assert float((baked - with_lora).norm() / (with_lora - plain).norm()) < 1e-4


@pytest.mark.parametrize(
    "base, names",
    [(base, "diffusers") for base in TRANSFORMERS] + [(base, "original") for base in TRANSFORMERS if base != "qwen"],
)
def test_transformers_are_baked_and_extracted(tmp_path: Path, base: str, names: str) -> None:
    written = TRANSFORMER_WRITERS["diffusers"][0](base, 2, 1)
    tensors = {key: tensor.float().clone() for key, tensor in tiny(base).state_dict().items()}
    if names == "original":
        for name, paths in original_names(base).items():
            tensors[f"model.diffusion_model.{name}.weight"] = torch.cat([tensors.pop(f"{p}.weight") for p in paths])
    whole, out = write(tmp_path / "base.safetensors", tensors), tmp_path / "out.safetensors"
    save_file(written.tensors, tmp_path / "cat.safetensors")
    bake_files(whole, [str(tmp_path / "cat.safetensors")], out)
    before, after = dense(whole), dense(out)
    truth = {name.removeprefix("transformer."): given.dense() for name, given in written.truth.items()}
    truth = {name: matrix for name, matrix in truth.items() if not name.startswith("text_encoder")}
    assert truth.keys() <= before.keys()
    for layer, weight in before.items():
        exact = weight + truth[layer].double() if layer in truth else weight
        assert torch.allclose(after[layer], exact, atol=1e-6), layer
    extract_files(out, whole, tmp_path / "back.safetensors", Size(rank=2))
    found = Adapter.load(tmp_path / "back.safetensors").matrices
    assert found.keys() == truth.keys()
    for layer, matrix in truth.items():
        assert (update(found[layer]) - matrix).norm() < 1e-5 * matrix.norm(), layer


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp8"])
@pytest.mark.parametrize("asked", [True, False])
def test_the_rounding_error_is_the_one_measured(tmp_path: Path, cat, monkeypatch, capsys, dtype, asked) -> None:
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}[dtype]
    source = single_file(weights(), encoder(1), encoder(2))
    if not asked:
        source = {key: tensor.to(kind) if tensor.is_floating_point() else tensor for key, tensor in source.items()}
    whole, out = write(tmp_path / "base.safetensors", source), tmp_path / "out.safetensors"
    assert run(monkeypatch, "bake", whole, f"{cat}:0.3", "-o", out, *(("--dtype", dtype) if asked else ())) == 0
    kinds = {key: tensor.dtype for key, tensor in load_file(out).items()}
    assert {kind for kind in kinds.values() if kind.is_floating_point} == {kind}
    assert kinds["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] == torch.int64
    lost = norm = 0.0
    before, after, matrices = dense(whole), dense(out), Adapter.load(cat).matrices
    for layer, factors in matrices.items():
        exact = before[layer] + 0.3 * update(factors)
        lost += float((after[layer] - exact).square().sum())
        norm += float(0.09 * update(factors).square().sum())
    error = rounding(capsys.readouterr().out)
    assert (
        error == pytest.approx(math.sqrt(lost / norm), rel=6e-3)
        and error > {"fp16": 0, "bf16": 1e-3, "fp8": 0.1}[dtype]
    )


def test_an_update_that_rounding_swallows_shows(tmp_path: Path, monkeypatch, capsys) -> None:
    tensors = {key: torch.ones_like(tensor) for key, tensor in weights(torch.bfloat16).items()}
    base, out = write(tmp_path / "base.safetensors", tensors), tmp_path / "out.safetensors"
    lora(2, 1, scale=0.005, encoders=False).save(tmp_path / "cat.safetensors")
    assert run(monkeypatch, "bake", base, tmp_path / "cat.safetensors", "-o", out) == 0
    assert rounding(capsys.readouterr().out) == 1.0, "1 + 1e-4 is 1 in bfloat16: nothing arrives"
    old, new = load_file(base), load_file(out)
    assert all(torch.equal(old[key], new[key]) for key in old)


def test_numbers_beyond_fp8_are_counted_and_get_the_largest(tmp_path: Path, monkeypatch, capsys) -> None:
    tensors = weights()
    tensors["conv_in.weight"].zero_()[0, 0, 0, :2] = torch.tensor([1000.0, -449.0])
    tensors["conv_norm_out.bias"][3] = 500.0
    base, out = write(tmp_path / "base.safetensors", tensors), tmp_path / "out.safetensors"
    lora(2, 1, encoders=False).save(tmp_path / "cat.safetensors")
    assert run(monkeypatch, "bake", base, f"{tmp_path / 'cat.safetensors'}", "-o", out, "--dtype", "fp8") == 0
    assert "3 numbers are beyond the range" in capsys.readouterr().err
    found = load_file(out)["conv_in.weight"].float()
    assert found[0, 0, 0, :2].tolist() == [448, -448] and load_file(out)["conv_norm_out.bias"][3].float() == 448
    words = ("bake", base, f"{tmp_path / 'cat.safetensors'}:1e6", "-o", tmp_path / "none.safetensors", "-d", "fp16")
    assert "would hold NaN or infinity in float16" in fails(monkeypatch, capsys, *words)
    assert not (tmp_path / "none.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_weight_zero_changes_no_byte_of_a_tensor(tmp_path: Path, cat, monkeypatch, dtype) -> None:
    source = single_file(weights(dtype), encoder(1), encoder(2))
    source["model.diffusion_model.out.2.weight"].view(torch.uint8).zero_().view(dtype)[0] = -0.0
    whole, out = write(tmp_path / "base.safetensors", source), tmp_path / "out.safetensors"
    assert run(monkeypatch, "bake", whole, f"{cat}:0", "-o", out) == 0

    def bytes_of(path: Path) -> dict[str, tuple[torch.dtype, bytes]]:
        places = Checkpoint.open(path).tensors.values()
        return {
            place.key: (place.dtype, place.read().flatten().view(torch.uint8).numpy().tobytes()) for place in places
        }

    assert bytes_of(out) == bytes_of(whole)


def test_a_pipelines_folder_makes_a_folder(tmp_path: Path, cat, monkeypatch, capsys) -> None:
    folder, out = pipeline(tmp_path / "base"), tmp_path / "out"
    (folder / "unet" / "old.bin").write_bytes(b"old")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1, "it is sharded"
    assert run(monkeypatch, "bake", folder, cat, "-o", out, "--dtype", "bf16") == 0
    assert "1 files of old weights are left out, such as unet/old.bin" in capsys.readouterr().err
    before, after, matrices = dense(folder), dense(out), Adapter.load(cat).matrices
    for layer, factors in matrices.items():
        exact = before[layer] + update(factors)
        assert torch.allclose(after[layer], exact, rtol=2**-8, atol=1e-6), layer
    assert {p.relative_to(out) for p in out.rglob("*")} == {
        p.relative_to(folder) for p in folder.rglob("*") if p.suffix != ".bin"
    }
    (index,) = (out / "unet").glob("*.index.json")
    size = sum(place.blank.nbytes for place in Checkpoint.open(out / "unet").tensors.values())
    assert json.loads(index.read_text())["metadata"]["total_size"] == size
    assert (out / "unet" / "config.json").read_bytes() == (folder / "unet" / "config.json").read_bytes()
    assert "exists; give the name of a new folder" in fails(monkeypatch, capsys, "bake", folder, cat, "-o", out)
    assert "lies in the checkpoint's" in fails(monkeypatch, capsys, "bake", folder, cat, "-o", folder / "unet" / "new")


def test_a_folder_is_whole_or_not_there(tmp_path: Path, cat, monkeypatch, capsys) -> None:
    folder = pipeline(tmp_path / "base")
    words = ("bake", folder, f"{cat}:1e9", "-o", tmp_path / "out", "--dtype", "fp16")
    assert "would hold NaN or infinity" in fails(monkeypatch, capsys, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "cat.safetensors"]
    shard = sorted((folder / "unet").glob("*.safetensors"))[1]
    shard.unlink()
    assert f"names {shard.name}, which is not there" in fails(monkeypatch, capsys, "bake", folder, cat, "-o", "out")


def test_mistakes_end_with_one_line(tmp_path: Path, whole, cat, monkeypatch, capsys) -> None:
    out = tmp_path / "out.safetensors"

    def refused(*words: object) -> str:
        error = fails(monkeypatch, capsys, "bake", *words, "-o", out)
        assert not out.exists()
        return error

    base = write(tmp_path / "unet.safetensors", weights())
    error = refused(base, cat)
    assert "24 of its 227 layers are not in" in error and "text_encoder.text_model" in error
    wide = Adapter({"mid_block.attentions.0.proj_in": Factors(torch.ones(1, 640), torch.ones(640, 1))})
    wide.save(tmp_path / "wide.safetensors")
    assert "is 640 x 640, but 64 x 64" in refused(base, tmp_path / "wide.safetensors")
    assert "no finite number" in refused(whole, f"{cat}:nan")
    assert "no such file" in refused(whole, tmp_path / "none.safetensors")
    assert "no layer of a UNet" in refused(cat, cat)
    assert "choose one of fp32, fp16, bf16, fp8" in refused(whole, cat, "--dtype", "int8")
    assert "is one of the inputs" in fails(monkeypatch, capsys, "bake", whole, cat, "-o", whole, "--force")
    scaled = write(tmp_path / "scaled.safetensors", {**weights(), "conv_in.scale_weight": torch.ones(1)})
    assert "conv_in.scale_weight is a scale" in refused(scaled, cat)
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "odd.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    assert "F4" in refused(tmp_path / "odd.safetensors", cat)
    torch.save(weights(), tmp_path / "old.ckpt")
    assert "a pickle" in refused(tmp_path / "old.ckpt", cat)
    (tmp_path / "empty").mkdir()
    assert "without .safetensors files" in refused(tmp_path / "empty", cat)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(whole.read_bytes()[:-5])
    assert "damaged.safetensors: not a readable safetensors file" in refused(damaged, cat)


def test_a_weight_follows_the_last_colon(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse("cat.safetensors") == ("cat.safetensors", 1) and parse("a:b.safetensors") == ("a:b.safetensors", 1)
    assert parse("cat.safetensors:0.5") == ("cat.safetensors", 0.5) and parse("a:-2e-1") == ("a", -0.2)
    (tmp_path / "cat:2").touch()
    assert parse("cat:2") == ("cat:2", 1) and parse("cat:2:3") == ("cat:2", 3)


MEMORY = """
import resource, sys
import torch
from lorarar.cli import app
from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.container import write_tensors
from lorarar.lora.lazy import Lazy

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def make(path, count, scale):
    names = [f"down_blocks.1.attentions.0.transformer_blocks.{i}.ff.net.2" for i in range(count)]
    blank = torch.empty(1024, 3072, device="meta")
    one = torch.randn(1024, 3072, generator=torch.Generator().manual_seed(0))
    low = scale * torch.randn(1024, 4) @ torch.randn(4, 3072)
    write_tensors(path, Lazy({f"{name}.weight": blank for name in names}, lambda key: one + low))
    return names

torch.manual_seed(0)
(folder,) = sys.argv[1:]
def run(*words): app(words, standalone_mode=False)
def bake(base, out): run("bake", base, f"{folder}/lora.safetensors", "-o", out)
def extract(tuned, base): run("extract", tuned, base, "-o", f"{tuned}-lora", "--rank", "4")
def lora(names):
    layers = {name: Factors(torch.randn(4, 3072) / 9, torch.randn(1024, 4) / 9) for name in names}
    Adapter(layers).save(f"{folder}/lora.safetensors")

lora(make(f"{folder}/two", 2, 0))
bake(f"{folder}/two", f"{folder}/two-baked")
extract(f"{folder}/two-baked", f"{folder}/two")
of_two = peak()
lora(make(f"{folder}/base", 24, 0))
bake(f"{folder}/base", f"{folder}/base-baked")
extract(f"{folder}/base-baked", f"{folder}/base")
print(peak() - of_two)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, text=True, capture_output=True, check=True)
    assert (tmp_path / "base-baked").stat().st_size > 3e8
    # Two layers take 25 MB, 24 layers 302 MB: the second part of the run may need hardly more than the first.
    assert float(done.stdout.splitlines()[-1]) < 50, done.stdout
