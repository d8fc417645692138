"""LoRAs of transformers: files of every layout in, merged files out, against diffusers and factors applied by hand."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lorarar
from lorarar.api import merge_files
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.bases import bases, named
from lorarar.lora.formats import format_for
from lorarar.merging.registry import METHODS
from tests.test_layouts import metadata_of, put
from tests.writers import TRANSFORMER_WRITERS, TRANSFORMERS, WRITERS, Written, in_blocks, original_names, tiny

CASES = [(layout, base) for layout, (_, known) in TRANSFORMER_WRITERS.items() for base in known]
NAMES = {
    "flux1": "FLUX.1",
    "chroma": "Chroma",
    "flux2": "FLUX.2 dev",
    "sd35": "Stable Diffusion 3.5 medium",
    "qwen": "Qwen-Image",
    "z-image": "Z-Image",
    "wan": "Wan 14B",
}
"""A base of the same family as each tiny model."""
RIGHT = {
    "flux1": ("diffusers", "kohya", "kohya-blocks", "xlabs"),
    "chroma": ("diffusers", "kohya", "kohya-blocks"),
    "flux2": ("diffusers", "kohya", "kohya-blocks", "comfyui"),
    "sd35": ("diffusers",),
    "qwen": ("diffusers", "musubi", "ai-toolkit"),
    "z-image": ("diffusers", "musubi", "ai-toolkit"),
    "wan": ("diffusers", "comfyui", "comfyui-alpha"),
}
"""Layouts that diffusers' own converters read right."""
FULL_ONLY = {("kohya", "FluxTransformer2DModel"), ("kohya", "ChromaTransformer2DModel")}
TRAINING_FREE = [
    name
    for name, method in METHODS.items()
    if not method.needs and not method.schedule and "content_blocks" not in method.options  # blocks of a UNet
]


FULL = 96
"""The width of FLUX.1 over that of the tiny model: diffusers splits `linear1` of kohya's files at full size only."""


def write(layout: str, base: str, seed: int = 1, scale: int = 1) -> Written:
    return TRANSFORMER_WRITERS[layout][0](base, 3, seed, scale=scale)


def same_in_diffusers(base: str, file: Path, adapter: Adapter) -> None:
    """Assert that the pipeline's converter makes the adapter's layers of a file, by what each does to random inputs."""
    state = getattr(diffusers, TRANSFORMERS[base].pipeline).lora_state_dict(str(file))
    stems = {key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")}
    assert 2 * len(stems) == len(state) and stems == {f"transformer.{path}" for path in adapter.layers}
    for path, (down, up) in adapter.layers.items():
        rows = torch.randn(down.shape[1], 4, generator=torch.Generator().manual_seed(0))
        theirs = state[f"transformer.{path}.lora_B.weight"] @ (state[f"transformer.{path}.lora_A.weight"] @ rows)
        assert close(theirs, up @ (down @ rows)), path


def meant(written: Written) -> dict[str, Tensor]:
    return {layer: update.dense() for layer, update in written.truth.items()}


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((found - expected).norm() <= tolerance * expected.norm())


def inputs(base: str) -> dict[str, Any]:
    """Arguments with which the tiny model of a base predicts."""
    random = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    time, text = torch.tensor([0.5]), noise(1, 6, 24)
    if base in ("flux1", "chroma"):
        ids = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(6, 3)}
        pooled = {"pooled_projections": noise(1, 24)} if base == "flux1" else {}
        return {"hidden_states": noise(1, 16, 4), "encoder_hidden_states": text, "timestep": time, **ids, **pooled}
    if base == "flux2":
        ids = {"img_ids": torch.zeros(16, 4), "txt_ids": torch.zeros(6, 4)}
        return {"hidden_states": noise(1, 16, 4), "encoder_hidden_states": text, "timestep": time, **ids}
    if base == "sd35":
        return {
            "hidden_states": noise(1, 4, 8, 8),
            "encoder_hidden_states": text,
            "pooled_projections": noise(1, 24),
            "timestep": time,
        }
    if base == "qwen":
        return {
            "hidden_states": noise(1, 16, 16),
            "encoder_hidden_states": text,
            "encoder_hidden_states_mask": torch.ones(1, 6),
            "timestep": time,
            "img_shapes": [(1, 4, 4)],
        }
    if base == "z-image":
        return {"x": [noise(4, 1, 8, 8)], "t": time, "cap_feats": [noise(6, 24)]}
    return {"hidden_states": noise(1, 4, 1, 8, 8), "encoder_hidden_states": text, "timestep": time}


def predict(model: torch.nn.Module, base: str) -> Tensor:
    with torch.no_grad():
        found = model(**inputs(base), return_dict=False)[0]
    return found[0] if isinstance(found, list) else found


@cache
def unchanged(base: str) -> Tensor:
    return predict(tiny(base), base)


def by_hand(base: str, updates: dict[str, Tensor]) -> Tensor:
    """The prediction of a model whose weights are changed by `updates`."""
    model = tiny(base)
    with torch.no_grad():
        for layer, update in updates.items():
            model.get_submodule(layer.removeprefix("transformer.")).weight += update
    return predict(model, base)


def loaded(base: str, file: Path) -> Tensor:
    """The prediction of a model that loads a file as its pipeline does."""
    pipeline, model = getattr(diffusers, TRANSFORMERS[base].pipeline), tiny(base)
    state, metadata = pipeline.lora_state_dict(str(file), return_lora_metadata=True)
    model.load_lora_adapter(state, prefix="transformer", metadata=metadata)
    return predict(model, base)


@pytest.mark.parametrize(("layout", "base"), CASES)
def test_a_file_is_read_as_it_is_meant(layout: str, base: str, tmp_path: Path) -> None:
    written = write(layout, base)
    adapter = Adapter.load(put(tmp_path, written))
    truth = meant(written)
    assert {f"transformer.{path}" for path in adapter.layers} == truth.keys() and not adapter.others
    for path, factors in adapter.layers.items():
        assert close(factors.delta, truth[f"transformer.{path}"], 1e-6), path
        assert factors.rank == 3, "a module in blocks is split into the factors that were put together"


@pytest.mark.parametrize(("base", "layout"), [(base, layout) for base, known in RIGHT.items() for layout in known])
def test_diffusers_reads_the_same(base: str, layout: str, tmp_path: Path) -> None:
    file = put(tmp_path, write(layout, base, scale=FULL if "kohya" in layout else 1))
    same_in_diffusers(base, file, Adapter.load(file))


@pytest.mark.parametrize("base", ["flux1", "chroma"])
def test_diffusers_reads_stacked_modules_that_are_written(base: str, tmp_path: Path) -> None:
    for layout in ("kohya", "diffusers"):  # with one A, and with one for each layer
        adapter = Adapter.load(put(tmp_path, write(layout, base, scale=FULL)))
        adapter.save(tmp_path / "out.safetensors", "kohya")
        same_in_diffusers(base, tmp_path / "out.safetensors", adapter)


@pytest.mark.parametrize(("layout", "base"), CASES)
def test_a_merge_has_the_formats_and_the_meaning_of_its_inputs(layout: str, base: str, tmp_path: Path) -> None:
    """The merge is written as its content was, read again, and loaded by diffusers after conversion."""
    pair = [write(layout, base, seed) for seed in (1, 2)]
    files = [put(tmp_path / str(seed), written) for seed, written in enumerate(pair)]
    out = tmp_path / "merged" / "adapter_model.safetensors"
    out.parent.mkdir()
    merge_files(*files, out)
    content, merged = Adapter.load(files[0]), Adapter.load(out)
    assert merged.format == content.format
    truth = {layer: update + meant(pair[1])[layer] for layer, update in meant(pair[0]).items()}
    assert {f"transformer.{path}" for path in merged.layers} == truth.keys()
    for path, factors in merged.layers.items():
        assert close(factors.delta, truth[f"transformer.{path}"]), path
    merged.save(tmp_path / "diffusers.safetensors")
    found, expected = loaded(base, tmp_path / "diffusers.safetensors"), by_hand(base, truth)
    assert close(found, expected) and not close(unchanged(base), expected, 1e-2)


@pytest.mark.parametrize("method", TRAINING_FREE)
@pytest.mark.parametrize("base", TRANSFORMERS)
def test_methods_merge_single_layers(base: str, method: str, tmp_path: Path) -> None:
    """Whatever the layout, methods see the layers of diffusers: stacked files merge as those of single layers do."""
    layout = next(layout for layout in ("kohya", "musubi") if base in TRANSFORMER_WRITERS[layout][1])
    pair = [write(layout, base, seed) for seed in (1, 2)]
    files = [put(tmp_path / str(seed), written) for seed, written in enumerate(pair)]
    single = [
        Adapter(
            {
                layer.removeprefix("transformer."): Factors(update.down, update.up * update.scale)
                for layer, update in written.truth.items()
            }
        )
        for written in pair
    ]
    expected = lorarar.merge(*single, method=method)
    out = tmp_path / "merged.safetensors"
    merge_files(*files, out, method=method)
    found = Adapter.load(out)
    assert found.layers.keys() == expected.layers.keys()
    for path, factors in found.layers.items():
        assert close(factors.delta, expected.layers[path].delta), path
    found.save(tmp_path / "diffusers.safetensors")
    updates = {f"transformer.{path}": factors.delta for path, factors in expected.layers.items()}
    assert close(loaded(base, tmp_path / "diffusers.safetensors"), by_hand(base, updates))


@pytest.mark.parametrize("base", TRANSFORMERS)
def test_every_format_holds_the_same_update(base: str, tmp_path: Path) -> None:
    adapter = Adapter.load(put(tmp_path, write("diffusers", base)))
    entry = named(NAMES[base])
    formats = [format for format in entry.formats if format != "xlabs"]
    for format in formats:
        (tmp_path / format).mkdir()
        file = tmp_path / format / "adapter_model.safetensors"
        adapter.save(file, format)
        found = Adapter.load(file)
        assert found.layers.keys() == adapter.layers.keys() and found.format == format
        for path, factors in found.layers.items():
            assert all(torch.equal(*pair) for pair in zip(factors, adapter.layers[path], strict=True)), (format, path)
        programs = [program for program, known in entry.programs.items() if format in known]
        if "diffusers" in programs and (format, entry.model) not in FULL_ONLY:
            updates = {f"transformer.{path}": factors.delta for path, factors in adapter.layers.items()}
            assert close(loaded(base, file), by_hand(base, updates)), format


def test_stacked_modules_share_a_if_their_layers_do(tmp_path: Path) -> None:
    shared, apart = write("kohya", "flux1"), write("kohya-blocks", "flux1")
    for written, rank in ((shared, 3), (apart, 9)):
        file = put(tmp_path, written)
        Adapter.load(file).save(tmp_path / "out.safetensors", "kohya")
        tensors = load_file(tmp_path / "out.safetensors")
        assert tensors.keys() == written.tensors.keys()
        name = "lora_unet_double_blocks_0_img_attn_qkv"
        assert tensors[f"{name}.lora_down.weight"].shape == (rank, 32) and tensors[f"{name}.alpha"] == rank


def test_layers_missing_from_a_stacked_module_get_zeros(tmp_path: Path) -> None:
    whole = Adapter.load(put(tmp_path, write("diffusers", "flux1")))
    some = Adapter({path: factors for path, factors in whole.layers.items() if not path.endswith(("to_k", "proj_mlp"))})
    some.save(tmp_path / "some.safetensors", "kohya")
    found = Adapter.load(tmp_path / "some.safetensors").layers
    for path, factors in found.items():
        expected = some.layers[path].delta if path in some.layers else torch.zeros(factors.delta.shape)
        assert torch.equal(factors.delta, expected), path


def test_halves_that_a_base_has_the_other_way_round_are_exchanged(tmp_path: Path) -> None:
    """FLUX.1's last modulation is (shift, scale) in its own code and (scale, shift) in diffusers."""
    name, down, up = "final_layer.adaLN_modulation.1", torch.ones(1, 8), torch.arange(16.0)[:, None]
    tensors = {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
    save_file(tensors, tmp_path / "a.safetensors")
    adapter = Adapter.load(tmp_path / "a.safetensors")
    assert torch.equal(adapter.layers["norm_out.linear"].up[:, 0], torch.arange(16.0).roll(8))
    adapter.save(tmp_path / "b.safetensors", "diffusers")
    again = Adapter.load(tmp_path / "b.safetensors")
    assert torch.equal(again.layers["norm_out.linear"].up[:, 0], torch.arange(16.0).roll(8))


T5 = "encoder.block.1.layer.{}"
ENCODERS = {
    "text_model.encoder.layers.0.self_attn.q_proj": "clip",
    f"{T5.format('0.SelfAttention.q')}": "t5",
    f"{T5.format('1.DenseReluDense.wi_0')}": "t5",
}


@pytest.mark.parametrize("format", ["kohya", "comfyui", "onetrainer", "diffusers"])
def test_text_encoders_travel_with_the_transformer(format: str, tmp_path: Path) -> None:
    """FLUX.1 has CLIP as `text_encoder` and T5 as `text_encoder_2`; kohya calls them lora_te1 and lora_te3."""
    transformer = Adapter.load(put(tmp_path, write("kohya", "flux1")))
    random = torch.Generator().manual_seed(0)
    others = {
        f"text_encoder{'' if kind == 'clip' else '_2'}.{path}": Factors(
            torch.randn(2, 6, generator=random), torch.randn(8, 2, generator=random)
        )
        for path, kind in ENCODERS.items()
    }
    Adapter(transformer.layers, others=others).save(tmp_path / "a.safetensors", format)
    found = Adapter.load(tmp_path / "a.safetensors")
    assert found.others.keys() == others.keys() and found.layers.keys() == transformer.layers.keys()
    for layer, factors in others.items():
        assert torch.equal(found.others[layer].delta, factors.delta)
    keys = load_file(tmp_path / "a.safetensors").keys()
    if format == "kohya":
        assert "lora_te3_encoder_block_1_layer_1_DenseReluDense_wi_0.lora_up.weight" in keys
    if format == "comfyui":
        assert "text_encoders.t5xxl.transformer.encoder.block.1.layer.0.SelfAttention.q.lora_A.weight" in keys


def test_onetrainer_names_t5_as_its_second_encoder(tmp_path: Path) -> None:
    written = write("onetrainer", "flux1")
    stem = "lora_te2_encoder_block_1_layer_0_SelfAttention_q"
    tensors = {f"{stem}.lora_down.weight": torch.ones(2, 6), f"{stem}.lora_up.weight": torch.ones(8, 2)}
    save_file({**written.tensors, **tensors}, tmp_path / "a.safetensors")
    assert list(Adapter.load(tmp_path / "a.safetensors").others) == [
        "text_encoder_2.encoder.block.1.layer.0.SelfAttention.q"
    ]


def full(name: str, format: str, file: Path, part: str = "") -> Adapter:
    """A file of a base in its full size, with factors of rank 1 in half precision."""
    layers = {
        path: Factors(torch.ones(1, columns).half(), torch.ones(rows, 1).half())
        for path, (rows, columns) in named(name).layers.items()
        if part in path
    }
    Adapter(layers).save(file, format)
    return Adapter.load(file)


@pytest.mark.parametrize("name", [base.name for base in bases() if base.component == "transformer"])
def test_full_sizes_are_told(name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    format = "kohya"
    full(name, format, file)
    found = lorarar.inspect(file)
    assert found.base.split(" or ")[-1 if name == "Chroma" else 0] == name and found.component == "transformer"
    assert found.format == format and len(found.layers) == len(named(name).layers)
    assert {path: layer.shape for path, layer in found.layers.items()} == named(name).layers


def test_a_merge_names_its_base_to_other_programs(tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        full("FLUX.1", "kohya", file, "single_transformer_blocks.0")
    notes = merge_files(*files, tmp_path / "both.safetensors")
    metadata = metadata_of(tmp_path / "both.safetensors")
    assert metadata["ss_base_model_version"] == "flux1" and metadata["modelspec.architecture"] == "flux-1-dev/lora"
    assert metadata["ss_network_module"] == "networks.lora_flux" and "ss_v2" not in metadata
    assert notes[-1] == "opens in ComfyUI, Forge, sd-scripts, InvokeAI and diffusers: kohya format"


def test_programs_read_formats_of_their_own() -> None:
    assert format_for("comfyui", "FLUX.1") == "comfyui" and format_for("forge", "FLUX.1") == "kohya"
    assert format_for("ai-toolkit", "FLUX.1") == "diffusers" and format_for("ai-toolkit", "Z-Image") == "comfyui"
    assert format_for("musubi", "Wan 14B") == "kohya" and format_for("peft", "Wan 14B") == "peft"
    with pytest.raises(UserError, match=r"--for musubi: reads no LoRA of FLUX\.1; choose one of ai-toolkit, comfyui"):
        format_for("musubi", "FLUX.1")


def refused(*files: Path) -> str:
    with pytest.raises(UserError) as caught:
        merge_files(*files, files[0].with_name("out.safetensors"))
    assert "\n" not in str(caught.value) and not files[0].with_name("out.safetensors").exists()
    return str(caught.value)


def test_two_bases_are_refused_by_name(tmp_path: Path) -> None:
    flux, qwen, unet = (tmp_path / f"{name}.safetensors" for name in ("flux", "qwen", "unet"))
    full("FLUX.1", "kohya", flux, "norm1")
    full("Qwen-Image", "kohya", qwen, "img_mlp")
    save_file(WRITERS["kohya"]("sd15", 1, seed=1).tensors, unet)
    expected = f"{flux} is for FLUX.1, {qwen} for Qwen-Image: merge adapters of one base model"
    assert refused(flux, qwen) == expected
    assert refused(flux, unet) == expected.replace(str(qwen), str(unet)).replace("Qwen-Image", "Stable Diffusion 1.5")
    small = [put(tmp_path / base, write("diffusers", base)) for base in ("flux1", "qwen")]
    widths = "of unknown size (widths"
    assert f"{small[0]} is for FLUX.1 {widths}" in (message := refused(*small)) and f"Qwen-Image {widths}" in message


def test_a_key_that_no_layer_has_is_named(tmp_path: Path) -> None:
    written = write("kohya", "flux1")
    extra = {f"lora_unet_double_blocks_0_other.lora_{part}.weight": torch.ones(2, 2) for part in ("down", "up")}
    save_file({**written.tensors, **extra}, tmp_path / "a.safetensors")
    with pytest.raises(
        UserError, match=r"a\.safetensors: lora_unet_double_blocks_0_other\.lora_\w+\.weight belongs to"
    ):
        Adapter.load(tmp_path / "a.safetensors")
    unet = {f"lora_unet_mid_block_attentions_0_proj_in.lora_{part}.weight": torch.ones(2, 2) for part in ("down", "up")}
    save_file({**written.tensors, **unet}, tmp_path / "a.safetensors")
    with pytest.raises(
        UserError, match=r"lora_unet_mid_block_attentions_0_proj_in.* belongs to no linear layer of FLUX"
    ):
        Adapter.load(tmp_path / "a.safetensors")


def test_shapes_of_another_model_are_refused(tmp_path: Path) -> None:
    """Lumina has Z-Image's names, but fewer keys and values than queries."""
    stem = "diffusion_model.layers.0.attention.qkv"
    tensors = {f"{stem}.lora_A.weight": torch.ones(1, 24), f"{stem}.lora_B.weight": torch.ones(40, 1)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(
        UserError, match=r"a\.safetensors: layers\.0\.attention\.qkv is of 40 x 24, which no layer of Z-I"
    ):
        Adapter.load(tmp_path / "a.safetensors")


def test_formats_without_a_name_are_refused(tmp_path: Path) -> None:
    flux = Adapter.load(put(tmp_path, write("diffusers", "flux1")))
    with pytest.raises(UserError, match=r"layer transformer\.\S+ has no name in xlabs's format; save in another"):
        flux.save(tmp_path / "a.safetensors", "xlabs")
    with pytest.raises(UserError, match="format kohya-sgm has no names for the layers of a transformer"):
        flux.save(tmp_path / "a.safetensors", "kohya-sgm")
    unet = Adapter({"mid_block.attentions.0.proj_in": Factors(torch.ones(1, 4), torch.ones(4, 1))})
    with pytest.raises(UserError, match=r"layer unet\.mid_block\S+ is not of a transformer"):
        unet.save(tmp_path / "a.safetensors", "comfyui")
    part = {"transformer_blocks.0.attn.to_q": Factors(torch.ones(1, 4), torch.ones(4, 1))}
    with pytest.raises(UserError, match="whose names in kohya's format differ; save as diffusers"):
        Adapter(part).save(tmp_path / "a.safetensors", "kohya")
    Adapter(part, {"ss_base_model_version": "qwen_image"}).save(tmp_path / "a.safetensors", "kohya")
    assert "lora_unet_transformer_blocks_0_attn_to_q.alpha" in load_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize("base", TRANSFORMERS)
def test_the_tiny_models_have_the_names_of_the_full_ones(base: str) -> None:
    family = named(NAMES[base]).family
    assert in_blocks(base).keys() <= {path for one in bases() if one.family == family for path in one.shapes}
    known = named(NAMES[base]).names.get("original", {})
    if TRANSFORMERS[base].ends:
        for name, paths in original_names(base).items():
            assert list(known[name])[: len(paths)] == paths
