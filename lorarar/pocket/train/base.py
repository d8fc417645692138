"""Trains the miniature SDXL from artwork only: corpus, VAE, UNet with both text encoders, pipeline folder.

Everything checkpoints and resumes. The networks are SDXL's own classes with small numbers in their configurations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from lorarar.device import best_device
from lorarar.diffusion.vae import PackedAutoencoderKL
from lorarar.files import atomic
from lorarar.pictures import as_tensor
from lorarar.pocket.train.trainer import fit
from lorarar.pocket.world.world import World

CHUNK = 2000  # pictures a file of the corpus
LATENT = (32, 8, 8)  # channels and size of a picture's latents
TOKENS = 24  # length of a prompt; the longest of the catalogue has 19 words


# --- corpus ---------------------------------------------------------------------------------------------------


def _render_chunk(root: Path, folder: Path, chunk: int) -> None:
    cv2.setNumThreads(1)
    world = World.load(root)
    rng = np.random.default_rng([0, chunk])
    samples = [world.sample(rng) for _ in range(CHUNK)]
    with atomic(folder / f"{chunk:04d}.json") as temporary:
        temporary.write_text(json.dumps([(s.caption, s.noun, s.glyph, s.family) for s in samples]), encoding="utf-8")
    with atomic(folder / f"{chunk:04d}.npy") as temporary:
        np.save(temporary, np.stack([s.image for s in samples]))


def render_corpus(root: Path, folder: Path, count: int, workers: int) -> None:
    """Draw `count` captioned pictures into `folder`, in chunks; chunks that are there already are kept."""
    missing = [c for c in range(-(-count // CHUNK)) if not (folder / f"{c:04d}.npy").exists()]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_render_chunk, root, folder, chunk) for chunk in missing]
        for job in tqdm(jobs, desc="corpus", unit=f"x {CHUNK}", disable=not jobs):
            job.result()


def read_corpus(folder: Path) -> tuple[np.ndarray, list[list[str]]]:
    """Pictures (N, 64, 64, 3) uint8, and (caption, noun, glyph, family) of each."""
    chunks = sorted(folder.glob("*.npy"))
    labels = [row for chunk in chunks for row in json.loads(chunk.with_suffix(".json").read_text(encoding="utf-8"))]
    return np.concatenate([np.load(chunk) for chunk in chunks]), labels


# --- VAE ------------------------------------------------------------------------------------------------------


def build_vae() -> PackedAutoencoderKL:
    """3 x 64 x 64 pixels to 32 x 8 x 8 latents."""
    return PackedAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def train_vae(work: Path, steps: int, batch: int = 32) -> None:
    """Train the VAE by L1 + MSE + gradient loss, with a little noise on the latents; writes `work/vae`."""
    device = best_device()
    pictures, _ = read_corpus(work / "corpus")
    held, pictures = as_tensor(pictures[:128]).to(device), pictures[128:]
    torch.manual_seed(0)
    vae = build_vae().to(device)

    def draw(step: int) -> Sequence[Tensor]:
        generator = torch.Generator().manual_seed(step)
        x = as_tensor(pictures[torch.randint(len(pictures), (batch,), generator=generator).numpy()])
        noise = torch.randn((batch, *LATENT), generator=generator)
        return x.to(device), noise.to(device)

    def loss(x: Tensor, noise: Tensor) -> Tensor:
        z = vae.encode(x).latent_dist.mean
        y = vae.decode(z + 0.03 * noise).sample
        e = y.float() - x
        chroma = e - e.mean(1, keepdim=True)
        edges = (e[..., 1:] - e[..., :-1]).abs().mean() + (e[..., 1:, :] - e[..., :-1, :]).abs().mean()
        fidelity = e.abs().mean() + 2 * e.square().mean() + 0.5 * edges + chroma.abs().mean()
        return fidelity + 1e-4 * z.float().square().mean()

    checkpoint = work / "vae.pt"
    fit(vae, draw, loss, name="vae", steps=steps, learning_rate=2e-3, weight_decay=0.01, checkpoint=checkpoint)
    latents = encode(vae, pictures[:2048], normalised=False)
    vae.register_to_config(latents_mean=latents.mean((0, 2, 3)).tolist(), latents_std=latents.std((0, 2, 3)).tolist())
    with torch.no_grad():
        error = vae.decode(vae.encode(held).latent_dist.mean).sample.clamp(-1, 1) - held
    psnr = 10 * torch.log10(4 / error.square().mean((1, 2, 3)))
    print(f"vae: {float(psnr.mean()):.2f} dB on {len(held)} held-out pictures")
    vae.save_pretrained(work / "vae")


def encode(vae: PackedAutoencoderKL, pictures: np.ndarray, normalised: bool = True, batch: int = 64) -> Tensor:
    """Latents (N, C, h, w) of uint8 pictures, with zero mean and unit spread a channel if `normalised`."""
    with torch.no_grad(), torch.autocast(vae.device.type, torch.bfloat16):
        latents = torch.cat(
            [
                vae.encode(as_tensor(pictures[i : i + batch]).to(vae.device)).latent_dist.mean.float().cpu()
                for i in range(0, len(pictures), batch)
            ]
        )
    if normalised:
        mean, std = (torch.tensor(getattr(vae.config, f"latents_{k}")).view(1, -1, 1, 1) for k in ("mean", "std"))
        latents = (latents - mean) / std
    return latents


# --- UNet and text encoders -------------------------------------------------------------------------------------


def build_tokenizer(words: list[str], folder: Path) -> Any:
    """CLIP's tokenizer with a byte-pair vocabulary in which every one of `words` is a single token.

    CLIP takes each digit for a separate word, so that `3d` is two.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [piece for word in words for piece in re.findall(r"\d|[^\W\d_]+", word)]
    endings = {pairs.pre_tokenizer.pre_tokenize_str(piece)[-1][0][-1] for piece in pieces}
    trainer = trainers.BpeTrainer(
        vocab_size=20_000,
        min_frequency=1,
        # Last letters of words as well: the trainer would number them in another order every time.
        special_tokens=["<|startoftext|>", "<|endoftext|>", *(f"{letter}</w>" for letter in sorted(endings))],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    pairs.train_from_iterator(pieces, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = (Path(name) for name in pairs.model.save(str(folder)))
    return CLIPTokenizer(
        vocab=str(vocabulary),
        merges=str(merges),
        model_max_length=TOKENS,
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )


def build_networks(tokenizer: Any) -> nn.ModuleDict:
    """UNet (two levels of cross-attention) and SDXL's two text encoders, untrained."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    width = 64
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=32,
        out_channels=32,
        block_out_channels=(96, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=(3, 6),  # heads, not their width: diffusers' historical name
        use_linear_projection=True,
        cross_attention_dim=2 * width,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + width,
        norm_num_groups=32,
    )
    networks = nn.ModuleDict(
        {
            "unet": unet,
            "text_encoder": CLIPTextModel(text),
            "text_encoder_2": CLIPTextModelWithProjection(text),
        }
    )
    for name in ("text_encoder", "text_encoder_2"):
        # CLIP's 0.02 learned slowly in so small a network.
        nn.init.normal_(networks.get_submodule(name).get_input_embeddings().weight, std=0.5)  # type: ignore[operator]
    return networks


def scheduler() -> Any:
    """A scheduler of v-prediction with zero terminal signal, so that grounds can be very dark or very bright."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def lesson(pictures: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw the inputs of one step: rows of so many pictures, noise, timesteps, and 0 where the caption is dropped.

    Captions are dropped one time in ten, as SDXL drops them: zeros for both encoders.
    """
    rows = torch.randint(pictures, (batch,), generator=generator)
    noise = torch.randn((batch, *LATENT), generator=generator)
    uniform = torch.rand(batch, generator=generator)
    # Half of them are near equal signal and noise: shapes and lines are decided there.
    normal = torch.sigmoid(torch.randn(batch, generator=generator) - 0.6)
    moment = torch.where(torch.arange(batch) % 2 == 0, uniform, normal)
    t = (moment * 1000).long().clamp(0, 999)
    keep = (torch.rand(batch, generator=generator) > 0.1).float()
    return rows, noise, t, keep


def train_unet(work: Path, root: Path, steps: int, batch: int = 128) -> None:
    """Train UNet and text encoders on the corpus; writes `work/base`."""
    device = best_device()
    pictures, labels = read_corpus(work / "corpus")
    vae = PackedAutoencoderKL.from_pretrained(work / "vae").to(device)
    latents = encode(vae, pictures).to(torch.float16)
    tokenizer = build_tokenizer(World.load(root).vocabulary, work / "vocabulary")
    captions = sorted({row[0] for row in labels})
    place = {caption: number for number, caption in enumerate(captions)}
    which = torch.tensor([place[row[0]] for row in labels])
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    torch.manual_seed(0)
    networks = build_networks(tokenizer).to(device)
    signal = scheduler().alphas_cumprod.to(device)
    # All pictures have one size; these are the pipeline's time ids for it.
    side = float(8 * 2 ** (len(vae.config.block_out_channels) - 1))
    time_ids = torch.tensor([side, side, 0, 0, side, side], device=device).repeat(batch, 1)
    # With 64 tokens or fewer, a CPU's fused kernel takes a quarter longer for a step than plain products.
    attention = SDPBackend.MATH if device == "cpu" else SDPBackend.EFFICIENT_ATTENTION

    def draw(step: int) -> Sequence[Tensor]:
        rows, noise, t, keep = lesson(len(latents), batch, torch.Generator().manual_seed(step))
        return [tensor.to(device) for tensor in (latents[rows], tokens[which[rows]], noise, t, keep)]

    def loss(latents: Tensor, ids: Tensor, noise: Tensor, t: Tensor, keep: Tensor) -> Tensor:
        x = latents.float()
        a, b = signal[t].sqrt().view(-1, 1, 1, 1), (1 - signal[t]).sqrt().view(-1, 1, 1, 1)
        with sdpa_kernel(attention):
            first = networks["text_encoder"](ids, output_hidden_states=True)
            second = networks["text_encoder_2"](ids, output_hidden_states=True)
            embeds = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1) * keep.view(-1, 1, 1)
            added = {"text_embeds": second.text_embeds * keep.view(-1, 1), "time_ids": time_ids}
            v = networks["unet"](a * x + b * noise, t, embeds, added_cond_kwargs=added).sample
        return F.mse_loss(v.float(), a * noise - b * x)

    checkpoint = work / "unet.pt"
    fit(networks, draw, loss, name="unet", steps=steps, learning_rate=1e-3, weight_decay=0.01, checkpoint=checkpoint)
    save_pipeline(networks, vae, tokenizer, work / "base")


def save_pipeline(networks: nn.ModuleDict, vae: PackedAutoencoderKL, tokenizer: Any, folder: Path) -> None:
    """A StableDiffusionXLPipeline folder in fp16 safetensors."""
    from diffusers import StableDiffusionXLPipeline

    vae.register_to_config(_name_or_path="")  # diffusers keeps the path that it was read from
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=networks["text_encoder"],
        text_encoder_2=networks["text_encoder_2"],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=networks["unet"],
        scheduler=scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)


def make(root: Path, work: Path, *, pictures: int, vae_steps: int, unet_steps: int, workers: int) -> Path:
    """Draw the corpus, train the VAE, then the UNet; returns the pipeline folder. Finished parts are kept in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    render_corpus(root, work / "corpus", pictures, workers)
    if not (work / "vae" / "config.json").exists():
        train_vae(work, vae_steps)
    if not (work / "base" / "model_index.json").exists():
        train_unet(work, root, unet_steps)
    return work / "base"
