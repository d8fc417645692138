"""A backbone says what diffusers and peft say, number for number, in float32."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from lorarar.device import gain_of_bfloat16
from lorarar.diffusion import backbone
from lorarar.diffusion.backbone import Backbone, Conditioning, best_dtype, to_images
from lorarar.diffusion.sampling import generate
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter, Factors
from lorarar.pictures import as_tensor


@pytest.fixture
def inputs(tiny):
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, *tiny.latent_shape, generator=generator)
    return latents, torch.tensor([10, 900]), tiny.encode_prompts(["a sks dog", "a car in oil style"])


def test_prompts_are_encoded_as_the_pipeline_does(tiny):
    prompts = ["a red dog", "a cat in oil painting style"]
    embeds, nothing, pooled, pooled_nothing = tiny.pipeline.encode_prompt(prompts, device="cpu")
    conditioning, unconditional = tiny.encode_prompts(prompts), tiny.encode_nothing()
    assert torch.equal(conditioning.embeds, embeds) and torch.equal(conditioning.pooled, pooled)
    assert torch.equal(unconditional.embeds, nothing[:1]) and torch.equal(unconditional.pooled, pooled_nothing[:1])
    assert not torch.allclose(embeds[0], embeds[1])


SHORT, LONG = "a red dog", " ".join(["a red dog", *["in oil painting style"] * 9])


def test_a_prompt_that_is_cut_is_told_once_with_the_words_that_are_lost(tiny_folder, capsys):
    backbone = Backbone.load(tiny_folder, torch.float32)
    pipeline, tokenizer = backbone.pipeline, backbone.pipeline.tokenizer
    backbone.encode_prompts([SHORT])
    assert not capsys.readouterr().err
    told = backbone.encode_prompts([LONG])
    [line] = capsys.readouterr().err.splitlines()
    kept = tokenizer.decode(tokenizer(LONG, truncation=True)["input_ids"], skip_special_tokens=True)
    lost = line.partition("left out: '")[2].partition("'")[0]
    assert f"{kept} {lost}".replace(" ", "") == LONG.replace(" ", "") and lost
    assert line.startswith("prompt 'a red dog in oil") and f"{tokenizer.model_max_length} tokens" in line
    backbone.encode_prompts([LONG, LONG, SHORT])
    assert not capsys.readouterr().err
    embeds, _, pooled, _ = pipeline.encode_prompt([LONG], device="cpu", do_classifier_free_guidance=False)
    assert torch.equal(told.embeds, embeds) and torch.equal(told.pooled, pooled)


def test_chunks_are_what_the_encoders_say_of_each_and_nothing_is_lost(tiny, capsys):
    room = tiny.pipeline.tokenizer.model_max_length - 2
    encoded = tiny.encode_prompts([SHORT, LONG], "chunks")
    assert not capsys.readouterr().err
    states = []
    for tokenizer, encoder in (
        (tiny.pipeline.tokenizer, tiny.pipeline.text_encoder), (tiny.pipeline.tokenizer_2, tiny.pipeline.text_encoder_2)
    ):  # fmt: skip
        words = tokenizer(LONG, add_special_tokens=False)["input_ids"]
        assert len(words) > 2 * room
        rows = []
        for start in range(0, len(words), room):
            row = [tokenizer.bos_token_id, *words[start : start + room], tokenizer.eos_token_id]
            rows.append(row + [tokenizer.pad_token_id] * (room + 2 - len(row)))
        found = encoder(torch.tensor(rows), output_hidden_states=True)
        states.append(found.hidden_states[-2].flatten(0, 1))
    torch.testing.assert_close(encoded.embeds[1], torch.cat(states, dim=-1))
    torch.testing.assert_close(encoded.pooled[1], found.text_embeds[0])
    alone, nothing = tiny.encode_prompts([SHORT]), tiny.encode_prompts([""])
    torch.testing.assert_close(encoded.embeds[:1, : room + 2], alone.embeds)
    torch.testing.assert_close(encoded.embeds[:1, -room - 2 :], nothing.embeds)
    torch.testing.assert_close(encoded.pooled[:1], alone.pooled)


def test_without_long_prompts_the_switch_changes_no_bit(tiny):
    cut, chunks = tiny.encode_prompts([SHORT]), tiny.encode_prompts([SHORT], "chunks")
    assert torch.equal(cut.embeds, chunks.embeds) and torch.equal(cut.pooled, chunks.pooled)
    assert cut.as_long_as(chunks) is cut


def test_pictures_follow_the_end_of_a_prompt_in_chunks_only(tiny):
    def drawn(prompt, how, guidance=3.0):
        return generate(tiny, None, prompt, seeds=[1], steps=2, guidance=guidance, long_prompts=how)[0]

    other = LONG.removesuffix("oil painting style") + "a red dog"
    assert np.array_equal(drawn(LONG, "cut"), drawn(other, "cut"))
    assert not np.array_equal(drawn(LONG, "chunks"), drawn(other, "chunks"))
    assert not np.array_equal(drawn(LONG, "chunks", 1.0), drawn(other, "chunks", 1.0))


def test_conditioning_rows_can_be_taken_and_joined():
    rows = Conditioning(torch.arange(6.0).view(3, 1, 2), torch.arange(3.0).view(3, 1))
    assert len(rows) == 3 and len(rows[:1] + rows[[2, 2]]) == 3
    assert (rows[:1] + rows[[2, 2]]).pooled.flatten().tolist() == [0, 2, 2]


def test_prediction_is_the_unets_with_sdxls_time_ids(tiny, inputs):
    latents, timesteps, conditioning = inputs
    time_ids = torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]] * 2)
    expected = tiny.unet(
        latents,
        timesteps,
        encoder_hidden_states=conditioning.embeds,
        added_cond_kwargs={"text_embeds": conditioning.pooled, "time_ids": time_ids},
    ).sample
    # Another attention kernel, the same sums in another order.
    torch.testing.assert_close(tiny.predict(latents, timesteps, conditioning), expected, rtol=1e-4, atol=1e-5)


def test_latents_are_normalised_by_the_vaes_own_statistics(tiny):
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    raw = tiny.vae.encode(images).latent_dist.mode()
    mean, std = (torch.tensor(tiny.vae.config[key]).view(1, 4, 1, 1) for key in ("latents_mean", "latents_std"))
    latents = tiny.encode_images(images)
    torch.testing.assert_close(latents, (raw - mean) / std * tiny.vae.config.scaling_factor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tiny.decode(latents), tiny.vae.decode(raw).sample, rtol=1e-4, atol=1e-4)


def test_scaling_factor_alone_will_do(tiny, monkeypatch):
    images = torch.zeros(1, 3, 16, 16)
    config = {**tiny.vae.config, "latents_mean": None, "latents_std": None}
    monkeypatch.setattr(tiny.vae, "_internal_dict", type(tiny.vae.config)(config))
    raw = tiny.vae.encode(images).latent_dist.mode()
    torch.testing.assert_close(tiny.encode_images(images), raw * 0.5)
    torch.testing.assert_close(tiny.decode(raw * 0.5), tiny.vae.decode(raw).sample)


def test_pictures_survive_the_way_to_tensors_and_back():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    pixels = as_tensor(list(images))
    assert pixels.shape == (2, 3, 4, 5) and pixels.min() >= -1 and pixels.max() <= 1
    assert np.array_equal(to_images(pixels), images)


def test_target_follows_the_scheduler(tiny, inputs, tiny_folder):
    from diffusers import DDPMScheduler

    latents, timesteps, _ = inputs
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    process = DDPMScheduler.from_config(tiny.pipeline.scheduler.config)
    alpha = process.alphas_cumprod[timesteps].sqrt().view(2, 1, 1, 1)
    sigma = (1 - process.alphas_cumprod[timesteps]).sqrt().view(2, 1, 1, 1)
    torch.testing.assert_close(tiny.add_noise(latents, noise, timesteps), alpha * latents + sigma * noise)
    torch.testing.assert_close(tiny.target(latents, noise, timesteps), alpha * noise - sigma * latents)
    assert process.alphas_cumprod[-1] < 1e-6  # zero terminal signal

    epsilon = Backbone.load(tiny_folder, torch.float32).pipeline
    epsilon.scheduler.register_to_config(prediction_type="epsilon")
    assert torch.equal(Backbone(epsilon).target(latents, noise, timesteps), noise)


def test_applied_adapter_equals_peft(tiny, tiny_folder, adapters, inputs, tmp_path):
    adapters[0].save(tmp_path / "content.safetensors")
    with tiny.applied(adapters[0]):
        ours = tiny.predict(*inputs)
    other = Backbone.load(tiny_folder, torch.float32)
    other.pipeline.load_lora_weights(str(tmp_path), weight_name="content.safetensors")
    torch.testing.assert_close(ours, other.predict(*inputs), rtol=1e-4, atol=1e-5)
    assert (ours - tiny.predict(*inputs)).abs().max() > 0.01


def test_a_merge_of_unequal_ranks_equals_peft_too(tiny, tiny_folder, adapters, inputs, tmp_path):
    from lorarar.merging import linear

    content, style = adapters
    lonely = next(iter(style.layers))
    del style.layers[lonely]
    merged = linear.average(content, style)
    assert set(merged.ranks.values()) == {4, 6}
    merged.save(tmp_path / "merged.safetensors")
    with tiny.applied(merged):
        ours = tiny.predict(*inputs)
    other = Backbone.load(tiny_folder, torch.float32)
    other.pipeline.load_lora_weights(str(tmp_path), weight_name="merged.safetensors")
    torch.testing.assert_close(ours, other.predict(*inputs), rtol=1e-4, atol=1e-5)


def test_applied_adapter_equals_changed_weights_and_leaves_no_trace(tiny, adapters, inputs):
    before = tiny.predict(*inputs)
    with tiny.applied(adapters[0]), tiny.applied(adapters[1]):
        ours = tiny.predict(*inputs)
    modules = dict(tiny.unet.named_modules())
    weights = {path: modules[path].weight.data.clone() for path in adapters[0].layers}
    for path in weights:
        modules[path].weight.data += adapters[0].layers[path].delta + adapters[1].layers[path].delta
    try:
        torch.testing.assert_close(ours, tiny.predict(*inputs), rtol=1e-4, atol=1e-5)
    finally:
        for path, weight in weights.items():
            modules[path].weight.data = weight
    assert torch.equal(tiny.predict(*inputs), before)


def test_gradients_reach_the_factors(tiny, adapters, inputs):
    leaves = {p: Factors(*(t.clone().requires_grad_() for t in f)) for p, f in adapters[0].layers.items()}
    with tiny.applied(Adapter(leaves)):
        tiny.predict(*inputs).square().mean().backward()
    assert all(t.grad.abs().sum() > 0 for factors in leaves.values() for t in factors)


def test_adapter_of_another_base_is_refused_and_hooks_are_removed(tiny, adapters, inputs):
    before = tiny.predict(*inputs)
    path = sorted(adapters[0].layers)[-1]
    wrong = dict(adapters[0].layers) | {"no.such.layer": adapters[0].layers[path]}
    with pytest.raises(UserError, match=r"no linear layer no\.such\.layer"), tiny.applied(Adapter(wrong)):
        pass
    wrong = dict(adapters[0].layers) | {path: Factors(torch.ones(1, 3), torch.ones(5, 1))}
    with pytest.raises(UserError, match=r"in the base model but 5 x 3"), tiny.applied(Adapter(wrong)):
        pass
    assert torch.equal(tiny.predict(*inputs), before)


def test_half_precision_computes_close_to_single(tiny, tiny_folder, adapters, inputs):
    half = Backbone.load(tiny_folder, torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.vae.dtype == torch.float32
    assert half.pipeline.text_encoder_2.dtype == torch.bfloat16
    with tiny.applied(adapters[0]), half.applied(adapters[0]):
        single, rough = tiny.predict(*inputs), half.predict(*inputs)
    assert rough.dtype == torch.float32
    assert (rough - single).norm() / single.norm() < 0.05


@pytest.mark.parametrize(("gain", "dtype"), [(0.6, torch.float32), (1.2, torch.float32), (1.9, torch.bfloat16)])
def test_cpus_compute_in_bfloat16_where_that_is_measured_to_be_much_faster(monkeypatch, gain, dtype):
    monkeypatch.setattr(backbone, "gain_of_bfloat16", lambda: gain)
    assert best_dtype() == (dtype, f"CPU multiplies bfloat16 matrices {gain} times as fast as float32")


def test_the_gain_of_bfloat16_is_measured():
    assert 0.001 < gain_of_bfloat16() < 100  # a CPU that lacks it computes in software


@pytest.mark.parametrize(
    "part", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder_2/model"]
)
def test_missing_or_damaged_weights_are_named(tiny_folder, tmp_path, part):
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    file = folder / f"{part}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{part}\.safetensors: damaged") as caught:
        Backbone.load(folder)
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(UserError, match=rf"{part}\.safetensors: no such file"):
        Backbone.load(folder)


def test_folders_that_are_no_pipeline_are_named(tiny_folder, tmp_path):
    with pytest.raises(UserError, match=r"model_index\.json: no such file"):
        Backbone.load(tmp_path)
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(UserError, match="not a StableDiffusionXLPipeline folder") as caught:
        Backbone.load(folder)
    assert "\n" not in str(caught.value)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(UserError, match=r"model_index\.json: not readable"):
        Backbone.load(folder)


def test_half_precision_variant_files_are_found(tiny_folder, tmp_path, inputs, tiny):
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert torch.equal(Backbone.load(folder, torch.float32).predict(*inputs), tiny.predict(*inputs))


def test_what_is_not_at_work_waits_in_main_memory(tiny_folder, monkeypatch):
    backbone = Backbone.load(tiny_folder, torch.float32, offload=True)
    backbone.device = torch.device("cpu", 0)  # told apart from main memory by its number
    names = {backbone.unet: "unet", backbone.vae: "vae"}
    names |= {getattr(backbone.pipeline, part): part for part in ("text_encoder", "text_encoder_2")}
    moves = []
    for module, name in names.items():
        there = lambda device, name=name: moves.append((name, "out" if device == "cpu" else "in"))  # noqa: E731
        monkeypatch.setattr(module, "to", there)
    backbone.encode_prompts(["a sks dog"])
    both = [("text_encoder", "in"), ("text_encoder_2", "in"), ("text_encoder", "out"), ("text_encoder_2", "out")]
    assert moves == both
    moves.clear()
    backbone.decode(torch.zeros(1, *backbone.latent_shape))
    assert moves == [("unet", "out"), ("vae", "in"), ("vae", "out"), ("unet", "in")]
    moves.clear()
    backbone.offload = False
    backbone.encode_images(torch.zeros(1, 3, 16, 16))
    assert not moves


@pytest.mark.parametrize(
    ("native", "sampling", "training"),
    [(True, torch.bfloat16, torch.bfloat16), (False, torch.float16, torch.float32)],
)
def test_gpus_without_bfloat16_sample_in_float16_and_train_in_float32(monkeypatch, native, sampling, training):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert best_dtype()[0] == sampling and best_dtype(training=True)[0] == training
