"""LoRAs from anywhere in, usable anywhere out: files as other tools write them, against what those files mean."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorarar.api import merge_files
from lorarar.contents import compare
from lorarar.errors import UserError
from lorarar.lora import base_models
from lorarar.lora.adapter import Adapter, Factors
from tests.loaders import PROGRAMS, linear_or_conv
from tests.writers import WRITERS, Written, cloneofsimo

BASES = ("sd15", "sd21", "sdxl")
PATH = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def put(folder: Path, written: Written, name: str = "adapter_model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in written.tensors.items()}, folder / name, written.metadata)
    if written.sidecar:
        (folder / "adapter_config.json").write_text(json.dumps(written.sidecar))
    return folder / name


def layers_of(adapter: Adapter) -> dict:
    return {**{f"unet.{path}": factors for path, factors in adapter.layers.items()}, **adapter.others}


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("base", BASES)
def test_what_a_tool_writes_is_read_as_it_is_meant(name: str, base: str, tmp_path: Path) -> None:
    written = WRITERS[name](base, 2, seed=1)
    found = layers_of(Adapter.load(put(tmp_path, written)))
    assert found.keys() == written.truth.keys()
    for layer in sorted(found)[:: 1 + len(found) // 20]:
        meant = written.truth[layer].dense()
        assert (found[layer].delta - meant).norm() <= 1e-6 * meant.norm(), layer


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", ["kohya", "kohya-conv"])
def test_a_merge_opens_where_its_inputs_came_from(name: str, base: str, tmp_path: Path) -> None:
    one, other = WRITERS[name](base, 2, seed=1), WRITERS[name](base, 2, seed=2)
    files = [put(tmp_path, one, "one.safetensors"), put(tmp_path, other, "other.safetensors")]
    out = tmp_path / "both.safetensors"
    notes = merge_files(*files, out)
    keys, metadata = load_file(out), metadata_of(out)
    for program, match in PROGRAMS.items():
        found = match(keys, base, metadata)
        assert found.matched == found.layers == len(one.truth) and not found.unmatched, program
        assert found.base in (None, base), program
    assert "opens in ComfyUI, A1111, Forge, sd-scripts, InvokeAI and diffusers" in notes[-1]
    found = layers_of(Adapter.load(out))
    for layer in sorted(found)[:: 1 + len(found) // 20]:
        meant = one.truth[layer].dense() + other.truth[layer].dense()
        assert (found[layer].delta - meant).norm() <= 1e-6 * meant.norm(), layer


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("base_model.model.transformer_blocks.0.attn1.to_q.lora_A.weight", "a transformer such as HunyuanDiT"),
        ("transformer.single_transformer_blocks.99.attn.to_q.lora_A.weight", "of FLUX's kind"),
        ("lora_unet_double_blocks_77_img_attn_qkv.lora_down.weight", "of FLUX's kind"),
        ("diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight", "HunyuanVideo"),
        ("diffusion_model.joint_blocks.77.x_block.attn.qkv.lora_A.weight", "of Stable Diffusion 3's kind"),
        ("lora_transformer_transformer_blocks_0_attn1_to_q.lora_down.weight", "a transformer such as HunyuanDiT"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "a language model"),
        ("diffusion_model.blocks.0.self_attn.q_proj.lora_A.weight", "Cosmos"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.to_q.lora.down.weight", "AnimateDiff"),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight", "T5"),
        ("lora_unet_mid_block_attentions_0_proj_in.a1.weight", "is GLoRA"),
        ("lora_unet_mid_block_attentions_0_proj_in.oft_blocks", "is OFT"),
        ("lora_unet_mid_block_attentions_0_proj_in.on_input", "on_input is no number"),
        ("base_model.model.vae.decoder.lora_A.weight", "no UNet or text encoder"),
    ],
)
def test_what_is_no_lora_of_a_unet_is_named(key: str, message: str, tmp_path: Path) -> None:
    other = key.replace("lora_A", "lora_B").replace("lora_down", "lora_up").replace(".down.", ".up.")
    save_file({key: torch.ones(2, 4), other: torch.ones(4, 2)}, tmp_path / "a.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2}))
    with pytest.raises(UserError, match=message) as caught:
        Adapter.load(tmp_path / "a.safetensors")
    assert str(caught.value).startswith(f"{tmp_path}/a.safetensors: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "a git-lfs pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page, not a LoRA"),
        (b'{"error": "Unauthorized"}', "a JSON message, not a LoRA"),
    ],
)
def test_what_is_no_file_of_tensors_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=message):
        Adapter.load(tmp_path / "a.safetensors")


def test_a_number_in_the_metadata_is_named(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"ss_epoch": 3}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="entry ss_epoch of __metadata__ is 3, not a text"):
        Adapter.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [1.0, 3.0, 128.0])
def test_alpha_is_folded_without_rounding(dtype: torch.dtype, alpha: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    down, up = torch.randn(7, 640).to(dtype), torch.randn(640, 7).to(dtype)
    stem = "lora_unet_" + PATH.replace(".", "_")
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(alpha)}
    save_file(tensors, tmp_path / "a.safetensors")
    meant = (up.double() @ down.double() * (alpha / 7)).float()
    found = Adapter.load(tmp_path / "a.safetensors").layers[PATH].delta
    assert (found - meant).norm() <= 1e-6 * meant.norm()


def test_tags_and_trigger_words_of_both_stay_and_hashes_go(tmp_path: Path) -> None:
    one, other = WRITERS["kohya"]("sdxl", 2, seed=1), WRITERS["kohya"]("sdxl", 2, seed=2)
    one.metadata.update({"modelspec.trigger_phrase": "sks cat", "ss_tag_frequency": '{"10_cat": {"cat": 5}}'})
    one.metadata["sshs_model_hash"] = "00" * 32
    other.metadata.update({"modelspec.trigger_phrase": "ink wash", "ss_tag_frequency": '{"1_ink": {"ink": 1}}'})
    files = [put(tmp_path, one, "one.safetensors"), put(tmp_path, other, "other.safetensors")]
    notes = merge_files(*files, tmp_path / "both.safetensors", method="average")
    found = metadata_of(tmp_path / "both.safetensors")
    assert "trigger words: sks cat, ink wash" in notes and found["modelspec.trigger_phrase"] == "sks cat, ink wash"
    assert json.loads(found["ss_tag_frequency"]) == {"10_cat": {"cat": 5}, "1_ink": {"ink": 1}}
    assert found["ss_base_model_version"] == "sdxl_base_v1-0" and found["ss_network_dim"] == "4"
    assert found["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora" and "sshs_model_hash" not in found


def test_files_that_name_two_bases_are_not_merged(tmp_path: Path) -> None:
    one, other = WRITERS["kohya"]("sdxl", 2, seed=1), WRITERS["kohya"]("sdxl", 2, seed=2)
    other.metadata["ss_base_model_version"] = "sd_v1"
    files = [put(tmp_path, one, "one.safetensors"), put(tmp_path, other, "other.safetensors")]
    other.metadata.pop("modelspec.architecture", None)
    files[1] = put(tmp_path, other, "other.safetensors")
    with pytest.raises(UserError, match=r"one\.safetensors says that it is for SDXL, .*other\.safetensors for Stable"):
        merge_files(*files, tmp_path / "both.safetensors")
    assert not (tmp_path / "both.safetensors").exists()


def test_folders_pickles_and_long_names(tmp_path: Path) -> None:
    written = WRITERS["diffusers"]("sd15", 2, seed=1)
    folder = tmp_path / "run"
    put(folder, written, "pytorch_lora_weights.safetensors")
    torch.save(written.tensors, tmp_path / "a.pt")
    one, other = Adapter.load(folder), Adapter.load(tmp_path / "a.pt")
    assert one.layers.keys() == other.layers.keys()
    assert all(torch.equal(one.layers[path].up, other.layers[path].up) for path in one.layers)
    out = tmp_path / f"{'x' * 243}.safetensors"
    merge_files(folder, tmp_path / "a.pt", out)
    assert out.exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="a folder with no single LoRA in it"):
        Adapter.load(tmp_path / "empty")


def test_two_files_are_compared_before_a_merge() -> None:
    torch.manual_seed(0)
    start, other = torch.randn(4, 640), torch.randn(4, 640)
    one = Adapter({PATH: Factors(start, torch.randn(640, 4))})
    kin = Adapter({PATH: Factors(start + 0.01 * torch.randn(4, 640), 10 * torch.randn(640, 4))})
    stranger = Adapter({PATH: Factors(other, torch.randn(640, 4))})
    near, far = compare(one, kin), compare(one, stranger)
    assert near.overlap > 0.99 and far.overlap == pytest.approx(4 / 640, rel=1) and far.by_chance == 4 / 640
    assert any("common random start" in text for text in near.warnings) and not far.warnings
    assert any("the second is much stronger" in text for text in near.warnings)
    dense = [adapter.layers[PATH].delta.flatten() for adapter in (one, stranger)]
    assert far.cosine == pytest.approx(float(torch.cosine_similarity(*dense, dim=0)), abs=1e-6)
    against = Adapter({PATH: Factors(start, -one.layers[PATH].up)})
    assert compare(one, against).cosine == pytest.approx(-1)
    assert any("oppose" in text for text in compare(one, against).warnings)


def test_the_table_in_the_documentation_is_what_the_rules_give() -> None:
    """`WRITE_TABLES=1` writes it."""
    page = Path(__file__).parents[1] / "docs/compatibility.md"
    rows = [f"| layout | {' | '.join(PROGRAMS)} |", f"| --- |{' ---: |' * len(PROGRAMS)}"]
    for name, write in WRITERS.items():
        found: dict[str, list[str]] = {program: [] for program in PROGRAMS}
        for base in BASES:
            written = write(base, 1, seed=1)
            for program, match in PROGRAMS.items():
                matched, number = match(written.tensors, base, written.metadata).matched, len(written.truth)
                found[program].append("all" if matched == number else f"{matched} of {number}" if matched else "none")
        cells = [cell[0] if len(set(cell)) == 1 else " / ".join(cell) for cell in found.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- table -->\n")
    table, end, after = rest.partition("<!-- end of table -->")
    if os.environ.get("WRITE_TABLES"):
        page.write_text(f"{before}<!-- table -->\n" + "\n".join(rows) + f"\n{end}{after}", encoding="utf-8")
    else:
        assert table.splitlines() == rows


@pytest.mark.parametrize("base", ["sd15", "sd21"])
def test_factors_without_names_are_told_by_their_shapes(base: str, tmp_path: Path) -> None:
    """cloneofsimo's files: a list in a pickle, or numbered keys."""
    listed = cloneofsimo(base, 2, seed=0)
    torch.save(listed, tmp_path / "a.pt")
    numbered = {f"unet:{i // 2}:{'down' if i % 2 else 'up'}": tensor.clone() for i, tensor in enumerate(listed)}
    save_file(numbered, tmp_path / "b.safetensors")
    for file in ("a.pt", "b.safetensors"):
        found = Adapter.load(tmp_path / file).layers
        assert len(found) == len(listed) // 2
        assert base_models.guess(found) == {"sd15": "Stable Diffusion 1.5", "sd21": "Stable Diffusion 2"}[base]
        modules = [path for path in linear_or_conv(base, "unet") if path in found]  # in the order of the model
        modules.sort(key=lambda path: path.startswith("mid_block"))
        for path, up, down in zip(modules, listed[::2], listed[1::2], strict=True):
            assert torch.equal(found[path].up, up) and torch.equal(found[path].down, down), path
    torch.save(listed[:-2], tmp_path / "a.pt")
    with pytest.raises(UserError, match="have no names, and the shapes of no base known here"):
        Adapter.load(tmp_path / "a.pt")
