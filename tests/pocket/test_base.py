"""Training of the miniature base: packing, vocabulary, and a pipeline of it."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from lorarar.diffusion.vae import PackedAutoencoderKL
from lorarar.pocket.train.base import build_networks, build_tokenizer, build_vae, save_pipeline
from lorarar.pocket.world.world import World

ROOT = Path(__file__).parents[2]


def test_packed_latents_are_the_plain_vaes_latents_in_another_order():
    packed = build_vae().eval()
    plain = AutoencoderKL.from_config(packed.config).eval()
    plain.load_state_dict(packed.state_dict())
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        z = packed.encode(x).latent_dist.mode()
        expected = plain.encode(x).latent_dist.mode()
        assert z.shape == (2, 32, 8, 8) and expected.shape == (2, 8, 16, 16)
        # Channel c * 4 + 2 * i + j holds the latent at row 2 y + i, column 2 x + j.
        for i in range(2):
            for j in range(2):
                assert torch.equal(z[:, 2 * i + j :: 4], expected[:, :, i::2, j::2])
        assert torch.allclose(packed.decode(z).sample, plain.decode(expected).sample, atol=1e-6)


def test_every_word_is_one_token_and_every_digit(tmp_path):
    words = World.load(ROOT).vocabulary
    tokenizer = build_tokenizer(words, tmp_path)
    for word in words:
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(word, add_special_tokens=False).input_ids)
        assert pieces == (["3</w>", "d</w>"] if word == "3d" else [f"{pieces[0]}"]), word
        assert tokenizer.eos_token not in pieces, word
    assert tokenizer.get_vocab() == build_tokenizer(words, tmp_path / "again").get_vocab()
    prompt = tokenizer("a dog in 3d rendering style").input_ids
    assert prompt.count(tokenizer.eos_token_id) == 1  # the second encoder's summary is read where the prompt ends


def test_a_pipeline_of_it_loads_and_samples(tmp_path):
    from lorarar.diffusion.backbone import Backbone
    from lorarar.diffusion.sampling import generate

    tokenizer = build_tokenizer(World.load(ROOT).vocabulary, tmp_path / "vocabulary")
    torch.manual_seed(0)
    vae: PackedAutoencoderKL = build_vae()
    vae.register_to_config(latents_mean=[0.0] * 32, latents_std=[1.0] * 32)
    save_pipeline(build_networks(tokenizer), vae, tokenizer, tmp_path / "base")
    backbone = Backbone.load(tmp_path / "base")
    assert isinstance(backbone.vae, PackedAutoencoderKL)
    (image,) = generate(backbone, None, "a dog in oil painting style", seeds=[0], steps=2, guidance=3)
    assert image.shape == (64, 64, 3)
