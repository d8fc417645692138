"""The rules of tests/loaders.py, on files as their trainers name the layers."""

from __future__ import annotations

import pytest
import torch

from tests import loaders
from tests.loaders import PROGRAMS, linear_or_conv, original

BASES = ("sd15", "sd21", "sdxl")
KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")
PEFT = (".lora_A.weight", ".lora_B.weight")
OLD = ("_lora.down.weight", "_lora.up.weight")
INSIDE = ("resnets", "attentions", "downsamplers", "upsamplers")


def flat(path: str) -> str:
    return path.replace(".", "_")


def keys_of(names: list[str], ends: tuple[str, ...]) -> list[str]:
    return [name + end for name in names for end in ends]


def text_names(base: str) -> list[str]:
    """Layers of the text encoders as kohya names them."""
    prefixes = {"text_encoder": "lora_te1_" if base == "sdxl" else "lora_te_", "text_encoder_2": "lora_te2_"}
    return [
        prefix + flat(path)
        for component, prefix in prefixes.items()
        for path in linear_or_conv(base, component)
        if path != "text_projection"
    ]


def unet_names(base: str, sgm: bool, inside: bool = True) -> list[str]:
    """Layers of the UNet as kohya names them: those that sd-scripts trains with a rank for convolutions, or all."""
    paths = original(base)
    return [
        f"lora_unet_{flat(old if sgm else path)}"
        for path, old in paths.items()
        if not inside or any(f"{part}." in path for part in INSIDE)
    ]


def attention(base: str) -> list[str]:
    """Paths of the projections of attention in the UNet, which diffusers' scripts train."""
    return [path for path in linear_or_conv(base, "unet") if ".to_" in path]


def shares(keys: list[str], base: str) -> dict[str, tuple[int, int]]:
    found = {name: program(keys, base, {}) for name, program in PROGRAMS.items()}
    for match in found.values():
        assert len(match.unmatched) == match.layers - match.matched
    return {name: (match.matched, match.layers) for name, match in found.items()}


@pytest.mark.parametrize(
    ("base", "unet", "in_attention", "text"), [("sd15", 278, 128, 72), ("sd21", 278, 128, 138), ("sdxl", 788, 560, 264)]
)
def test_models_have_the_published_number_of_layers(base: str, unet: int, in_attention: int, text: int) -> None:
    """sd-scripts logs these numbers: 192 and 722 modules in transformers, 72, 138 and 264 in text encoders."""
    in_transformers = [path for path in linear_or_conv(base, "unet") if ".attentions." in path]
    assert len(in_transformers) == {"sd15": 192, "sd21": 192, "sdxl": 722}[base]
    assert len(attention(base)) == in_attention
    assert len(unet_names(base, sgm=False)) == unet
    assert len(text_names(base)) == text


@pytest.mark.parametrize("base", BASES)
def test_original_names_are_distinct_and_known(base: str) -> None:
    names = original(base)
    assert len(set(names.values())) == len(names)
    up = "up_blocks.0.upsamplers.0.conv"
    assert names[up] == ("output_blocks.2.2.conv" if base == "sdxl" else "output_blocks.2.1.conv")
    assert names["down_blocks.1.attentions.0.proj_in"] == "input_blocks.4.1.proj_in"
    assert names["up_blocks.1.attentions.2.proj_out"] == "output_blocks.5.1.proj_out"
    assert names["mid_block.resnets.1.conv2"] == "middle_block.2.out_layers.3"


@pytest.mark.parametrize("base", BASES)
def test_all_programs_read_a_file_of_sd_scripts(base: str) -> None:
    names = text_names(base) + unet_names(base, sgm=base == "sdxl")
    assert shares(keys_of(names, KOHYA), base) == dict.fromkeys(PROGRAMS, (len(names), len(names)))


def test_sdxl_with_names_of_diffusers() -> None:
    """A1111 misplaces one upsampler of SDXL; all others read diffusers' names after `lora_unet_`."""
    names = unet_names("sdxl", sgm=False)
    found = shares(keys_of(names, KOHYA), "sdxl")
    assert found.pop("A1111") == (len(names) - 1, len(names))
    assert set(found.values()) == {(len(names), len(names))}
    missing = loaders.a1111(keys_of(names, KOHYA), "sdxl", {}).unmatched
    assert missing == ("lora_unet_up_blocks_0_upsamplers_0_conv",)


def test_a1111_has_no_rule_for_the_added_embedding() -> None:
    names = unet_names("sdxl", sgm=False, inside=False)
    missing = set(loaders.a1111(keys_of(names, KOHYA), "sdxl", {}).unmatched)
    assert missing == {
        "lora_unet_up_blocks_0_upsamplers_0_conv",
        "lora_unet_add_embedding_linear_1",
        "lora_unet_add_embedding_linear_2",
    }


def test_sd_scripts_leave_out_embeddings_and_outer_convolutions() -> None:
    names = unet_names("sd15", sgm=False, inside=False)
    missing = set(loaders.sd_scripts(keys_of(names, KOHYA), "sd15", {}).unmatched)
    assert missing == {f"lora_unet_{name}" for name in ("conv_in", "conv_out")} | {
        f"lora_unet_time_embedding_linear_{i}" for i in (1, 2)
    }


def test_sd_scripts_need_diffusers_names_for_sd_1() -> None:
    names = [name for name in unet_names("sd15", sgm=True) if "attn" in name]
    keys = keys_of(names, KOHYA)
    assert loaders.sd_scripts(keys, "sd15", {}).matched == 0
    assert loaders.comfyui(keys, "sd15", {}).matched == loaders.a1111(keys, "sd15", {}).matched == len(names)


@pytest.mark.parametrize("base", BASES)
def test_old_attention_processors_of_diffusers(base: str) -> None:
    """Only ComfyUI and Forge read them, because they list each name with `processor`."""
    names = [f"unet.{path.replace('.to_', '.processor.to_').removesuffix('.0')}" for path in attention(base)]
    everything = (len(names), len(names))
    nothing = (0, len(names))
    assert shares(keys_of(names, OLD), base) == {
        "ComfyUI": everything,
        "Forge": everything,
        "A1111": nothing,
        "sd-scripts": nothing,
        "InvokeAI": nothing,
    }


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("ends", [PEFT, (".lora.down.weight", ".lora.up.weight")])
def test_no_program_reads_attention_as_diffusers_saves_it_now(base: str, ends: tuple[str, ...]) -> None:
    names = [f"unet.{path}" for path in attention(base)]
    assert set(shares(keys_of(names, ends), base).values()) == {(0, len(names))}


def test_comfyui_reads_what_is_outside_of_attention_in_files_of_diffusers() -> None:
    names = [f"unet.{path}" for path in linear_or_conv("sdxl", "unet")]
    found = loaders.comfyui(keys_of(names, PEFT), "sdxl", {})
    assert set(found.unmatched) == {f"unet.{path}" for path in attention("sdxl")}


def test_text_encoders_as_diffusers_saves_them() -> None:
    parts = ("text_encoder", "text_encoder_2")
    paths = [f"{part}.{path}" for part in parts for path in linear_or_conv("sdxl", part) if path != "text_projection"]
    found = shares(keys_of(paths, (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")), "sdxl")
    everything = (len(paths), len(paths))
    assert found["ComfyUI"] == found["Forge"] == everything
    assert found["A1111"] == found["sd-scripts"] == found["InvokeAI"] == (0, len(paths))


@pytest.mark.parametrize("base", BASES)
def test_no_program_reads_files_of_peft(base: str) -> None:
    names = [f"base_model.model.{path}" for path in attention(base)]
    assert set(shares(keys_of(names, PEFT), base).values()) == {(0, len(names))}


def test_prefixes_of_the_other_family_do_not_match() -> None:
    keys = keys_of([name.replace("lora_te_", "lora_te1_") for name in text_names("sd21")], KOHYA)
    found = shares(keys, "sd21")
    assert found["ComfyUI"] == found["Forge"] == (138, 138)
    assert found["A1111"] == found["sd-scripts"] == found["InvokeAI"] == (0, 138)
    keys = keys_of([name.replace("lora_te_", "lora_te1_") for name in text_names("sd15")], KOHYA)
    assert shares(keys, "sd15")["A1111"] == (72, 72)


def test_forge_leaves_out_a_file_with_more_than_twelve_foreign_keys() -> None:
    names = unet_names("sdxl", sgm=True)
    foreign = [f"bundle_emb.token{i}.clip_l" for i in range(13)]
    assert loaders.forge(keys_of(names, KOHYA) + foreign[:12], "sdxl", {}).matched == len(names)
    found = loaders.forge(keys_of(names, KOHYA) + foreign, "sdxl", {})
    assert found.matched == 0 and "13 keys" in found.refusal


def test_embeddings_do_not_disturb_the_others() -> None:
    names = unet_names("sdxl", sgm=True)
    found = shares(keys_of(names, KOHYA) + ["bundle_emb.dog.clip_l"], "sdxl")
    assert set(found.values()) == {(len(names), len(names))}


def test_an_alpha_alone_is_an_error_in_two_programs() -> None:
    names = unet_names("sdxl", sgm=True)
    keys = [*keys_of(names[1:], KOHYA), f"{names[0]}.alpha"]
    found = shares(keys, "sdxl")
    assert found["A1111"] == found["InvokeAI"] == (0, len(names) - 1)
    assert found["ComfyUI"] == found["Forge"] == found["sd-scripts"] == (len(names) - 1, len(names) - 1)


def test_invokeai_refuses_mixed_and_foreign_names() -> None:
    mixed = [*unet_names("sdxl", sgm=True)[:5], *unet_names("sdxl", sgm=False)[5:9]]
    assert "no original name" in loaders.invokeai(keys_of(mixed, KOHYA), "sdxl", {}).refusal
    foreign = [*unet_names("sdxl", sgm=True), "lora_te_text_model_encoder_layers_0_mlp_fc1"]
    assert "lora_te_" in loaders.invokeai(keys_of(foreign, KOHYA), "sdxl", {}).refusal


@pytest.mark.parametrize(("base", "width"), [("sd15", 768), ("sd21", 1024), ("sdxl", 2048)])
def test_invokeai_takes_the_base_from_shapes(base: str, width: int) -> None:
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.lora_down.weight": torch.zeros(4, width), f"{name}.lora_up.weight": torch.zeros(640, 4)}
    assert loaders.invokeai(tensors, base, {}) == (1, 1, (), base, "")
    for other in set(BASES) - {base}:
        assert loaders.invokeai(tensors, other, {}).refusal == f"its shapes are those of {base}"


def test_invokeai_knows_sdxl_by_its_deep_transformers() -> None:
    name = "lora_unet_input_blocks_7_1_transformer_blocks_{}_attn1_to_q"
    for depth, base in ((2, "sdxl"), (1, None)):
        tensors = {name.format(depth) + end: torch.zeros(4, 4) for end in KOHYA}
        assert loaders.invokeai(tensors, "sdxl", {}).base == base


@pytest.mark.parametrize(
    ("metadata", "a1111", "forge"),
    [
        ({}, None, None),
        ({"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}, "sdxl", "sdxl"),
        ({"ss_base_model_version": "sd_v1", "ss_v2": "False"}, "sd15", None),
        ({"ss_base_model_version": "sd_v2", "ss_v2": "True"}, "sd21", "sd21"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "sd15", "sdxl"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd15", "sd15"),
        ({"format": "pt"}, "sd15", None),
    ],
)
def test_base_from_metadata(metadata: dict[str, str], a1111: str | None, forge: str | None) -> None:
    keys = keys_of(unet_names("sdxl", sgm=True), KOHYA)
    assert loaders.a1111(keys, "sdxl", metadata).base == a1111
    assert loaders.forge(keys, "sdxl", metadata).base == forge
    assert loaders.comfyui(keys, "sdxl", metadata).base is None


def test_a_file_of_another_base_matches_in_part_or_not() -> None:
    """SD 1.5 names exist in SD 2.1: names alone do not tell these apart, and shapes do."""
    names = unet_names("sd15", sgm=False)
    assert set(shares(keys_of(names, KOHYA), "sd21").values()) == {(len(names), len(names))}
    found = shares(keys_of(names, KOHYA), "sdxl")
    assert found["ComfyUI"][0] < len(names) and found["Forge"] == (0, len(names))
