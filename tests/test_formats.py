"""LoRA files of diffusers, peft and kohya mean here what they mean there: each is held against the tool's own code."""

from __future__ import annotations

import copy
import functools
import json
import logging
import tempfile
import warnings
from pathlib import Path

import peft
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lorarar.errors import UserError
from lorarar.lora import base_models
from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.formats import WRITERS

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TINY = SDXL | {
    "block_out_channels": (16, 16, 32),
    "transformer_layers_per_block": (1, 1, 2),
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}


@pytest.fixture(scope="module")
def tiny() -> StableDiffusionXLPipeline:
    """A pipeline whose UNet has SDXL's blocks, in small."""
    text = CLIPTextConfig(
        vocab_size=10,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=0,
        eos_token_id=1,
    )
    return StableDiffusionXLPipeline(
        vae=None,
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=None,
        tokenizer_2=None,
        unet=UNet2DConditionModel(**TINY),
        scheduler=None,
    )


@pytest.fixture
def pipeline(tiny) -> StableDiffusionXLPipeline:
    """A copy that a test may load LoRAs into."""
    return StableDiffusionXLPipeline(**{name: copy.deepcopy(part) for name, part in tiny.components.items()})


def sites(pipeline) -> dict[str, torch.nn.Module]:
    """Every layer that a LoRA can be of, by the name that `Adapter` has for it."""
    found = {}
    for component in COMPONENTS:
        for path, module in getattr(pipeline, component).named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                if component != "unet" and path.startswith("encoder."):
                    path = f"text_model.{path}"
                found[f"{component}.{path}"] = module
    return found


def make(modules: dict[str, torch.nn.Module], rank=lambda place: 4, dtype: torch.dtype = torch.float32) -> Adapter:
    """Random factors; `rank` is a function of a layer's place in the list."""
    generator = torch.Generator().manual_seed(0)
    layers, others = {}, {}
    for place, (name, module) in enumerate(modules.items()):
        weight, r = module.weight, rank(place)
        down = torch.randn(r, *weight.shape[1:], generator=generator).to(dtype)
        up = torch.randn(len(weight), r, *(1,) * (weight.ndim - 2), generator=generator).to(dtype)
        if name.startswith("unet.") and weight.ndim == 2:
            layers[name.removeprefix("unet.")] = Factors(down, up)
        else:
            others[name] = Factors(down, up)
    return Adapter(layers, {"subject": "dog8"}, others)


def all_of(adapter: Adapter) -> dict[str, Factors]:
    return {f"unet.{path}": factors for path, factors in adapter.layers.items()} | adapter.others


def applied(model: torch.nn.Module, component: str = "unet") -> dict[str, torch.Tensor]:
    """The updates of the one LoRA in a model, as peft computes them."""
    updates = {}
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            path = path.removeprefix("base_model.model.")
            path = f"text_model.{path}" if component != "unet" and path.startswith("encoder.") else path
            updates[f"{component}.{path}"] = module.get_delta_weight(next(iter(module.lora_A))).detach()
    return updates


def assert_updates(adapter: Adapter, expected: dict[str, torch.Tensor]) -> None:
    found = {name: factors.delta for name, factors in all_of(adapter).items()}
    assert found.keys() == expected.keys()
    for name, update in expected.items():
        torch.testing.assert_close(found[name], update, msg=lambda text, name=name: f"{name}: {text}")


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.layers.keys() == other.layers.keys() and one.others.keys() == other.others.keys()
    for name, factors in all_of(one).items():
        for a, b in zip(factors, all_of(other)[name], strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b), name


def randomise(model: torch.nn.Module) -> None:
    """peft starts with up = 0."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for matrix in module.lora_B.values():
                torch.nn.init.normal_(matrix.weight)


# What other tools write.

CONFIGURATIONS = {
    "alpha = rank": {"r": 4, "lora_alpha": 4},
    "alpha": {"r": 4, "lora_alpha": 10},
    "rslora": {"r": 8, "lora_alpha": 3, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 2,
        "rank_pattern": {"to_q": 2, "attn2.to_k": 3, r"mid_block.*to_v": 6},
        "alpha_pattern": {"to_k": 5, r"^down_blocks\.1.*to_q": 7, "conv1": 1},
    },
}


@pytest.fixture(params=CONFIGURATIONS)
def trained(request, pipeline):
    """The pipeline with a LoRA of each kind of layer in its UNet."""
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "proj_in", "time_emb_proj", "conv1", "conv_shortcut"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.unet.add_adapter(peft.LoraConfig(target_modules=targets, **CONFIGURATIONS[request.param]))
    randomise(pipeline.unet)
    return pipeline


def test_files_of_peft_are_read(tiny, tmp_path):
    for name, configuration in CONFIGURATIONS.items():
        wanted = peft.LoraConfig(
            target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1"], **configuration
        )
        model = peft.get_peft_model(copy.deepcopy(tiny.unet), wanted)
        randomise(model)
        model.save_pretrained(tmp_path / name)
        adapter = Adapter.load(tmp_path / name / "adapter_model.safetensors")
        assert adapter.format == "peft"
        assert_updates(adapter, applied(model))


def test_files_of_diffusers_are_read(trained, tmp_path):
    text = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "out_proj", "fc1"])
    for model in (trained.text_encoder, trained.text_encoder_2):
        model.add_adapter(text)
        randomise(model)
    states, expected = {}, {}
    for component in COMPONENTS:
        model = getattr(trained, component)
        states[component] = convert_state_dict_to_diffusers(
            peft.get_peft_model_state_dict(model, adapter_name="default")
        )
        expected |= applied(model, component)
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path,
        **{f"{component}_lora_layers": state for component, state in states.items()},
        **_collate_lora_metadata({component: getattr(trained, component) for component in COMPONENTS}),
    )
    adapter = Adapter.load(tmp_path / "pytorch_lora_weights.safetensors")
    assert adapter.format == "diffusers"
    assert "lora_adapter_metadata" not in adapter.metadata
    assert_updates(adapter, expected)


def test_kohya_files_of_diffusers_are_read(pipeline, tmp_path):
    pipeline.unet.add_adapter(
        peft.LoraConfig(r=3, lora_alpha=3, target_modules=["to_k", "to_out.0", "conv2", "linear_1"])
    )
    randomise(pipeline.unet)
    state = peft.get_peft_model_state_dict(pipeline.unet, adapter_name="default")
    save_file(
        convert_state_dict_to_kohya({f"unet.{key}": tensor for key, tensor in state.items()}),
        tmp_path / "a.safetensors",
    )
    adapter = Adapter.load(tmp_path / "a.safetensors")
    assert adapter.format == "kohya"
    assert_updates(adapter, applied(pipeline.unet))


@pytest.mark.parametrize(
    "old, name",
    [
        ("unet.{}.attn1.processor.to_q_lora.down.weight", "unet.{}.attn1.to_q"),
        ("unet.{}.attn2.processor.to_out_lora.down.weight", "unet.{}.attn2.to_out.0"),
        ("{}.attn1.processor.to_v_lora.down.weight", "unet.{}.attn1.to_v"),
        ("unet.unet.{}.attn1.to_k.lora.down.weight", "unet.{}.attn1.to_k"),
        ("unet.{}.ff.net.2.lora_A.default.weight", "unet.{}.ff.net.2"),
        ("lora_unet_input_blocks_4_1_proj_in.lora_down.weight", "unet.down_blocks.1.attentions.0.proj_in"),
        ("lora_unet_output_blocks_2_2_conv.lora_down.weight", "unet.up_blocks.0.upsamplers.0.conv"),
        ("lora_unet_label_emb_0_2.lora_down.weight", "unet.add_embedding.linear_2"),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight",
            "text_encoder.text_model.encoder.layers.0.self_attn.out_proj",
        ),
        (
            "text_encoder.encoder.layers.0.mlp.fc1.lora_linear_layer.down.weight",
            "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        ),
        (
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        ),
    ],
)
def test_older_and_other_names_are_read(tmp_path, old, name):
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    old, factors = old.format(block), Factors(torch.rand(2, 3), torch.rand(4, 2))
    up = old.replace("down.weight", "up.weight").replace("lora_A", "lora_B")
    save_file({old: factors.down, up: factors.up}, tmp_path / "a.safetensors")
    found = all_of(Adapter.load(tmp_path / "a.safetensors"))
    assert list(found) == [name.format(block)]
    assert torch.equal(found[name.format(block)].delta, factors.delta)


# What is written for other tools.


@pytest.mark.parametrize("format, ranks", [("diffusers", 1), ("diffusers", 5), ("kohya", 1), ("kohya-sgm", 1)])
def test_diffusers_loads_what_is_written(pipeline, tmp_path, format, ranks):
    modules = sites(pipeline)
    # Of text encoders diffusers takes the ranks of these alone.
    modules = {name: module for name, module in modules.items() if not name.endswith("text_projection")}
    adapter = make(modules, lambda place: 4 + place % ranks)
    adapter.save(tmp_path / "a.safetensors", format)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    expected = {}
    for component in COMPONENTS:
        expected |= applied(getattr(pipeline, component), component)
    assert_updates(adapter, expected)


@pytest.mark.parametrize("format", ["kohya", "kohya-sgm"])
def test_diffusers_converts_kohya_files_of_several_ranks(tiny, tmp_path, format):
    """It then loses the alphas of attention layers on the way to peft, so that is not compared."""
    adapter = make(sites(tiny), lambda place: 1 + place % 5)
    adapter.save(tmp_path / "a.safetensors", format)
    state, alphas = StableDiffusionXLPipeline.lora_state_dict(tmp_path / "a.safetensors", unet_config=tiny.unet.config)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "b.safetensors")
    assert_same(Adapter.load(tmp_path / "b.safetensors"), adapter)
    assert sorted(alphas.values()) == sorted(factors.rank for factors in all_of(adapter).values())


@pytest.mark.parametrize("rank", [lambda place: 4, lambda place: 1 + place % 5], ids=["one rank", "five ranks"])
def test_peft_loads_what_is_written(pipeline, tmp_path, rank):
    adapter = make(sites(pipeline), rank)
    adapter.save(tmp_path / "adapter_model.safetensors", "peft")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = peft.PeftModel.from_pretrained(pipeline.unet, tmp_path)
    text = {name for name in adapter.others if name.startswith("text_encoder")}
    assert text
    unet = Adapter(adapter.layers, others={name: adapter.others[name] for name in adapter.others.keys() - text})
    assert_updates(unet, applied(model))


# Round trips.


@pytest.fixture(scope="module")
def sdxl() -> UNet2DConditionModel:
    """SDXL's own UNet, without its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(**SDXL)


def test_every_layer_of_sdxl_has_a_name_in_every_format(sdxl, tmp_path):
    modules = {
        f"unet.{path}": m for path, m in sdxl.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)
    }
    before = make(
        {name: torch.nn.Conv2d(1, 1, 1) if m.weight.ndim == 4 else torch.nn.Linear(1, 1) for name, m in modules.items()}
    )
    assert len(before.layers) == 743 and len(before.others) == 51
    for format in WRITERS:
        before.save(tmp_path / "a.safetensors", format)
        assert_same(Adapter.load(tmp_path / "a.safetensors"), before)


def test_kohya_has_the_names_that_trainers_write(tmp_path):
    block = "transformer_blocks"
    names = {
        f"unet.down_blocks.2.attentions.1.{block}.9.attn2.to_out.0": f"input_blocks_8_1_{block}_9_attn2_to_out_0",
        f"unet.up_blocks.1.attentions.2.{block}.1.ff.net.0.proj": f"output_blocks_5_1_{block}_1_ff_net_0_proj",
        "unet.mid_block.attentions.0.proj_out": "middle_block_1_proj_out",
    }
    adapter = make({name: torch.nn.Linear(3, 3) for name in names})
    adapter.save(tmp_path / "a.safetensors", "kohya-sgm")
    tensors = load_file(tmp_path / "a.safetensors")
    assert {key.removeprefix("lora_unet_").partition(".")[0] for key in tensors} == set(names.values())
    assert all(tensors[key] == 4 for key in tensors if key.endswith(".alpha"))
    adapter.save(tmp_path / "a.safetensors", "kohya")
    assert "lora_unet_mid_block_attentions_0_proj_out.lora_up.weight" in load_file(tmp_path / "a.safetensors")


def adapters(modules: dict[str, torch.nn.Module]):
    """Any of the layers, of any ranks, in one dtype each."""
    return st.builds(
        lambda names, ranks, dtype: make(
            {name: modules[name] for name in names}, lambda place: ranks[place % 3], dtype
        ),
        st.lists(st.sampled_from(list(modules)), min_size=1, max_size=6, unique=True),
        st.tuples(*[st.integers(1, 5)] * 3),
        st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("format", WRITERS)
def test_round_trips_are_exact(tiny, data, format):
    before = data.draw(adapters(sites(tiny)))
    assume(format != "peft" or any(name.startswith("unet.") for name in all_of(before)))
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder, "1.safetensors"), Path(folder, "2.safetensors")
        before.save(one, format)
        after = Adapter.load(one)
        assert_same(after, before)
        assert after.metadata == before.metadata
        assert after.format in (format, "kohya")  # without blocks, kohya's names are the same
        backwards = [dict(reversed(layers.items())) for layers in (before.layers, before.others)]
        Adapter(backwards[0], before.metadata, backwards[1]).save(other, format)
        assert one.read_bytes() == other.read_bytes()


@settings(max_examples=25, deadline=None)
@given(alpha=st.floats(0.125, 128, width=32), rank=st.integers(1, 9), format=st.sampled_from(list(WRITERS)))
def test_alpha_is_folded_exactly_once(alpha, rank, format):
    path = "mid_block.attentions.0.proj_in"
    down, up = torch.rand(rank, 5), torch.rand(7, rank)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "a.safetensors")
        stem = f"lora_unet_{path.replace('.', '_')}"
        tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(alpha)}
        save_file(tensors, file, {"ss_network_alpha": str(alpha)})
        first = Adapter.load(file)
        torch.testing.assert_close(first.layers[path].delta, alpha / rank * up @ down)
        assert first.metadata == {}
        first.save(file, format)
        assert_same(Adapter.load(file), first)


# What is refused.

STEM = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.mark.parametrize(
    "key, message",
    [
        (f"{STEM}.hada_w3_a", "is LoHa"),
        (f"{STEM}.lokr_t1", "is LoKr"),
        (f"{STEM}.dora_scale", "is DoRA"),
        ("base_model.model.conv_in.lora_magnitude_vector", "is DoRA"),
        (f"{STEM}.diff_b", "changes a bias or a norm"),
        (f"{STEM}.oft_diag", r"oft_diag is OFT, not part of a plain LoRA"),
        ("lora_unet_nowhere_to_q.lora_down.weight", r"nowhere_to_q\.lora_down\.weight is not part"),
        ("transformer.blocks.0.lora_A.weight", r"transformer\.blocks\.0\.lora_A\.weight is not part"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(tmp_path, key, message):
    tensors = {
        f"{STEM}.lora_down.weight": torch.ones(2, 3),
        f"{STEM}.lora_up.weight": torch.ones(3, 2),
        key: torch.ones(3),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        Adapter.load(tmp_path / "a.safetensors")
    assert "a.safetensors" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_run_no_code(tmp_path, zipped):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("the pickle was opened",)

    torch.save({"a": Bomb()}, tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"a\.bin: a pickle that holds more than tensors.* take a \.safetensors file"):
        Adapter.load(tmp_path / "a.bin")


def test_peft_files_need_their_own_configuration(tmp_path, caplog):
    file = tmp_path / "adapter_model.safetensors"
    adapter = make({"unet.mid_block.attentions.0.proj_in": torch.nn.Linear(3, 3)})
    adapter.save(file, "peft")
    configuration = tmp_path / "adapter_config.json"
    right = json.loads(configuration.read_text())
    for change, message in [
        ({"r": 8}, "rank 4 but its configuration says 8"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 also changed the base's weights"),
    ]:
        configuration.write_text(json.dumps(right | change))
        with pytest.raises(UserError, match=message):
            Adapter.load(file)
    configuration.write_text("[1")
    with pytest.raises(UserError, match=r"adapter_config\.json: not a JSON object"):
        Adapter.load(file)
    configuration.unlink()
    with caplog.at_level(logging.WARNING):
        assert_same(Adapter.load(file), adapter)
    assert "alpha is taken to be the rank" in caplog.text


def test_a_layer_without_a_name_in_the_format_is_named(tmp_path):
    linear = torch.nn.Linear(3, 3)
    with pytest.raises(UserError, match=r"unet\.somewhere\.to_q has no name in kohya's format"):
        make({"unet.somewhere.to_q": linear}).save(tmp_path / "a.safetensors", "kohya")
    with pytest.raises(UserError, match=r"down_blocks\.3.* has no name"):
        make({"unet.down_blocks.3.resnets.0.time_emb_proj": linear}).save(tmp_path / "a.safetensors", "kohya-sgm")
    with pytest.raises(UserError, match="format lora is unknown; choose one of diffusers, peft, kohya"):
        make({"unet.mid_block.attentions.0.proj_in": linear}).save(tmp_path / "a.safetensors", "lora")
    with pytest.raises(UserError, match="a peft file is of the UNet, of which this adapter has no layer"):
        make({"text_encoder.text_projection": linear}).save(tmp_path / "a.safetensors", "peft")
    assert not list(tmp_path.iterdir())


# Base models.

CROSS = {"down": "CrossAttnDownBlock2D", "up": "CrossAttnUpBlock2D"}
OLDER = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (CROSS["down"],) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + (CROSS["up"],) * 3,
}
POCKET = {
    "block_out_channels": (96, 192),
    "layers_per_block": 1,
    "down_block_types": (CROSS["down"],) * 2,
    "up_block_types": (CROSS["up"],) * 2,
    "cross_attention_dim": 128,
    "use_linear_projection": True,
}
UNETS = {
    "SDXL": SDXL,
    "SDXL or KOALA": SDXL
    | {"layers_per_block": 1, "transformer_layers_per_block": (1, 2, 5), "mid_block_type": None},  # KOALA-700m
    "Stable Diffusion 1.5": OLDER | {"cross_attention_dim": 768},
    "Stable Diffusion 2": OLDER | {"cross_attention_dim": 1024, "use_linear_projection": True},
    "pocket": POCKET,
    "pocket or pocket_light": POCKET
    | {"mid_block_type": None, "reverse_transformer_layers_per_block": ((1, 0), (1, 0))},  # pocket_light
    "unknown (widths 16, 24, 32, 64, 128)": TINY,
}


@functools.cache
def widths(name: str) -> dict[str, tuple[int, int]]:
    with torch.device("meta"):
        modules = UNet2DConditionModel(**UNETS[name]).named_modules()
    return {path: (m.out_features, m.in_features) for path, m in modules if isinstance(m, torch.nn.Linear)}


@pytest.mark.parametrize(("name", "millions"), [("SDXL", 2567), ("SDXL or KOALA", 782)])
def test_the_unets_have_the_sizes_that_were_published(name, millions):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[name])
    assert sum(p.numel() for p in unet.parameters()) // 10**6 == millions  # table 1 of arXiv 2312.04005


def blank(name: str, part: str = "attentions") -> Adapter:
    """An adapter of the base's layers whose paths have `part`."""
    layers = {path: shape for path, shape in widths(name).items() if part in path}
    return Adapter({path: Factors(torch.empty(4, n), torch.empty(m, 4)) for path, (m, n) in layers.items()})


@pytest.mark.parametrize("name", UNETS)
def test_the_base_is_told_by_the_layers(name):
    assert base_models.guess(blank(name).layers) == name


def test_parts_of_an_adapter_leave_the_base_open():
    older = "Stable Diffusion 1.5"
    assert base_models.guess(blank("SDXL", "down_blocks.1.attentions.0").layers) == "SDXL or KOALA"
    assert base_models.guess(blank(older, "attn1.to_q").layers) == "Stable Diffusion 1.5 or Stable Diffusion 2"
    assert base_models.guess(blank("SDXL", "time_emb_proj").layers) == "unknown (widths 1280)"


def test_adapters_of_different_bases_are_refused_by_name():
    older, whole = blank("Stable Diffusion 1.5"), blank("SDXL")
    with pytest.raises(UserError) as caught:
        base_models.same(older.layers, whole.layers, names=("a.safetensors", "b.safetensors"))
    assert str(caught.value) == (
        "a.safetensors is for Stable Diffusion 1.5, b.safetensors for SDXL: merge adapters of one base model"
    )
    base_models.same(whole.layers, blank("SDXL", "down_blocks.1.attentions.0").layers)
    base_models.same(blank(list(UNETS)[-1]).layers, blank(list(UNETS)[-1], "attn1").layers)
