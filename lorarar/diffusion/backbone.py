"""A base model: any folder of diffusers' `StableDiffusionXLPipeline`, be it SDXL, KOALA or pocket."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_log
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear
from transformers.utils import logging as transformers_log

import lorarar.diffusion.vae  # noqa: F401  (diffusers loads a class of ours only if it has been imported)
from lorarar.device import best_device, gain_of_bfloat16
from lorarar.diffusion import hub
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter

LongPrompts = Literal["cut", "chunks"]
"""Treatments of a prompt that is too long for the text encoders, see `Backbone.encode_prompts`."""


def best_dtype(training: bool = False) -> tuple[torch.dtype, str]:
    """The dtype to compute in on this machine, and why. A training's small gradients would vanish in float16."""
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "CUDA device"
        return torch.float32 if training else torch.float16, "CUDA device without bfloat16"
    gain = gain_of_bfloat16()
    reason = f"CPU multiplies bfloat16 matrices {gain:.1f} times as fast as float32"
    return torch.bfloat16 if gain > 1.5 else torch.float32, reason


def to_images(pixels: Tensor) -> list[np.ndarray]:
    """(N, 3, H, W) in [-1, 1] -> uint8 pictures (H, W, 3)."""
    rounded = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return list(rounded.permute(0, 2, 3, 1).cpu().numpy())


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts, B rows, as the UNet takes them."""

    embeds: Tensor  # (B, T, D): hidden states of both text encoders
    pooled: Tensor  # (B, P): projection of the second one

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, rows: Any) -> Conditioning:
        """Some rows: a slice, a list or a tensor of indices."""
        return Conditioning(self.embeds[rows], self.pooled[rows])

    def as_long_as(self, other: Conditioning) -> Conditioning:
        """The same rows with their T tokens as often as `other` has them: T divides its number of tokens."""
        times = other.embeds.shape[1] // self.embeds.shape[1]
        return self if times == 1 else Conditioning(self.embeds.repeat(1, times, 1), self.pooled)

    def __add__(self, other: Conditioning) -> Conditioning:
        """The rows of both, one after the other."""
        return Conditioning(torch.cat([self.embeds, other.embeds]), torch.cat([self.pooled, other.pooled]))


class Backbone:
    """A frozen base model and what can be asked of it. Latents are float32, of about unit spread.

    Parameters
    ----------
    pipeline : its UNet is already on the device that computes.
    offload : keep on the GPU only the UNet or only the VAE, whichever is in use.
    """

    def __init__(self, pipeline: StableDiffusionXLPipeline, offload: bool = False) -> None:
        self.pipeline, self.offload = pipeline, offload
        self.unet, self.vae = pipeline.unet, pipeline.vae
        # Kept, since diffusers looks through all parameters each time it is asked.
        self.dtype, self.device = pipeline.unet.dtype, pipeline.unet.device
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            module.requires_grad_(False).eval()
        # Samplers such as Euler add noise in units of their own; UNets are trained with DDPM's.
        self._told: set[str] = set()
        self._forward_process = DDPMScheduler.from_config(pipeline.scheduler.config)

    @classmethod
    def load(cls, folder: Path | str, dtype: torch.dtype | None = None, *, offload: bool = False) -> Backbone:
        """Load a pipeline folder, or the one that a folder's `model.yaml` names. Nothing is downloaded.

        Parameters
        ----------
        dtype
            Of the UNet and text encoders, whatever is on disk; None is `best_dtype()`. The VAE's is float32: SDXL's
            overflows in float16.
        offload
            See the class.

        Raises
        ------
        UserError
            It is not on this machine, or a file of weights is missing or damaged; the message names it.
        """
        given, dtype = folder, dtype or best_dtype()[0]
        folder, variant = hub.locate(given)
        variant = check_files(folder, variant, hub.fetch_command(given))
        try:
            with _no_progress_bars():
                pipeline = StableDiffusionXLPipeline.from_pretrained(
                    folder,
                    dtype={"vae": torch.float32, "default": dtype},
                    variant=variant,
                    add_watermarker=False,
                    local_files_only=True,
                )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{folder}: not a StableDiffusionXLPipeline folder ({reason}); fetch or make it again"
            ) from error
        device = best_device()  # but text encoders, which are asked once, wait in main memory
        pipeline.unet.to(device)
        if not offload:
            pipeline.vae.to(device)
        return cls(pipeline, offload)

    @property
    def training_timesteps(self) -> int:
        """Timesteps of the forward process."""
        return self._forward_process.config.num_train_timesteps

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one image at the model's own size."""
        size = self.unet.config.sample_size
        return self.unet.config.in_channels, size, size

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str], long_prompts: LongPrompts = "cut") -> Conditioning:
        """Encodes prompts by both text encoders, one row for each.

        Parameters
        ----------
        long_prompts
            Text encoders take a fixed number of tokens, 77 with SDXL: 75 between two marks. `cut` drops the rest of a
            longer prompt, as diffusers does, and prints the dropped words once. `chunks` encodes 75 tokens at a time
            and joins the hidden states, T = 77 for each chunk; the projection is that of the first chunk.
        """
        lost = {prompt: words for prompt in prompts if (words := self._lost(prompt))}
        if lost and long_prompts == "chunks":
            return self._encode_chunks(prompts)
        for prompt in lost.keys() - self._told:
            tokens = self.pipeline.tokenizer.model_max_length
            print(
                f"prompt {' '.join(prompt.split())[:40]!r}: longer than the text encoders' {tokens} tokens; "
                f"left out: {lost[prompt]!r}; shorten it, or encode long prompts in chunks",
                file=sys.stderr,
            )
            self._told.add(prompt)
        with self._awake(self.pipeline.text_encoder, self.pipeline.text_encoder_2), _quiet(bool(lost)):
            embeds, _, pooled, _ = self.pipeline.encode_prompt(
                prompts, device=self.device, do_classifier_free_guidance=False
            )
        return Conditioning(embeds, pooled)

    @torch.no_grad()
    def encode_nothing(self) -> Conditioning:
        """One row: the unconditional side of classifier-free guidance, as this pipeline defines it."""
        with self._awake(self.pipeline.text_encoder, self.pipeline.text_encoder_2):
            _, embeds, _, pooled = self.pipeline.encode_prompt("", device=self.device, do_classifier_free_guidance=True)
        return Conditioning(embeds, pooled)

    def _lost(self, prompt: str) -> str:
        """The end of a prompt that the text encoders do not see; empty if they see all."""
        ends = []
        for tokenizer in (self.pipeline.tokenizer, self.pipeline.tokenizer_2):
            rest = _words(tokenizer, prompt)[tokenizer.model_max_length - 2 :]
            ends.append(tokenizer.decode(rest).strip())
        return max(ends, key=len)

    def _encode_chunks(self, prompts: list[str]) -> Conditioning:
        """Encodes prompts in as many chunks as the longest needs; shorter prompts end with empty chunks."""
        tokenizers = self.pipeline.tokenizer, self.pipeline.tokenizer_2
        encoders = self.pipeline.text_encoder, self.pipeline.text_encoder_2
        chunked = [[_chunks(tokenizer, prompt) for prompt in prompts] for tokenizer in tokenizers]
        number = max(len(chunks) for rows in chunked for chunks in rows)
        states = []
        with self._awake(*encoders):
            for tokenizer, encoder, rows in zip(tokenizers, encoders, chunked, strict=True):
                empty = _chunks(tokenizer, "")
                full = torch.tensor([chunks + empty * (number - len(chunks)) for chunks in rows], device=self.device)
                encoded = encoder(full.flatten(0, 1), output_hidden_states=True)
                states.append(encoded.hidden_states[-2].unflatten(0, (len(prompts), number)).flatten(1, 2))
        embeds = torch.cat(states, dim=-1).to(self.pipeline.text_encoder_2.dtype)
        return Conditioning(embeds, encoded.text_embeds.unflatten(0, (len(prompts), number))[:, 0])

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> normalised latents (B, C, h, w): the posterior's mode."""
        images = images.to(self.device, self.vae.dtype)
        with self._vae_awake():
            parts = images.split(_at_once(images[0, 0].numel()))
            latents = torch.cat([self.vae.encode(part).latent_dist.mode() for part in parts])
        mean, std = self._latent_statistics
        return ((latents - mean) / std).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) -> pictures (B, 3, H, W), about in [-1, 1]."""
        mean, std = self._latent_statistics
        raw = (latents.to(self.device) * std + mean).to(self.vae.dtype)
        with self._vae_awake():
            parts = raw.split(_at_once(raw[0, 0].numel() * self.pipeline.vae_scale_factor**2))
            return torch.cat([self.vae.decode(part).sample.float() for part in parts])

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output (B, C, h, w) in float32, for latents (B, C, h, w) at timesteps (B,) or one."""
        height, width = (size * self.pipeline.vae_scale_factor for size in latents.shape[-2:])
        time_ids = torch.tensor([height, width, 0, 0, height, width], device=self.device, dtype=self.dtype)
        added = {
            "text_embeds": conditioning.pooled.to(self.dtype),
            "time_ids": time_ids.expand(len(latents), 6),
        }
        # On a CPU, plain products beat the fused attention kernel as long as pictures are small. Checkpointing
        # computes again during the backward pass, outside this block, and must find the same kernel.
        small = self.device.type == "cpu" and latents[0, 0].numel() <= 256
        plain = small and not self.unet.is_gradient_checkpointing
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            return self.unet(
                latents.to(self.dtype),
                timesteps,
                encoder_hidden_states=conditioning.embeds.to(self.dtype),
                added_cond_kwargs=added,
                return_dict=False,
            )[0].float()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The forward process: latents as they are at timesteps (B,)."""
        return self._forward_process.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The training target of the UNet, by the scheduler's `prediction_type`: the noise, or the velocity."""
        if self._forward_process.config.prediction_type == "v_prediction":
            return self._forward_process.get_velocity(latents, noise, timesteps)
        return noise

    @contextmanager
    def applied(self, adapter: Adapter) -> Iterator[None]:
        """Within the block the UNet computes with W + up @ down; gradients reach the factors.

        The update is a separate product, x down^T up^T: added to bfloat16 weights most of it would be
        rounded away.

        Raises
        ------
        UserError
            The adapter was made for another base model.
        """
        modules = dict(self.unet.named_modules())
        with ExitStack() as hooks:
            for path, (down, up) in adapter.computed().layers.items():
                module = modules.get(path)
                if not isinstance(module, nn.Linear):
                    raise UserError(f"the base model has no linear layer {path}: use an adapter made for it")
                if (module.out_features, module.in_features) != (up.shape[0], down.shape[1]):
                    shape = f"{module.out_features} x {module.in_features}"
                    raise UserError(
                        f"layer {path} is {shape} in the base model but {up.shape[0]} x {down.shape[1]} "
                        "in the adapter: use an adapter made for this base"
                    )
                hooks.callback(module.register_forward_hook(_adds(self._cast(down), self._cast(up))).remove)
            yield

    @contextmanager
    def checkpointed(self, on: bool = True) -> Iterator[None]:
        """Within the block, if `on`, backward passes compute activations again instead of finding them in memory.

        They do so with whatever is applied at that time: go backward where the forward pass was made.
        """
        if not on:
            yield
            return
        self.unet.enable_gradient_checkpointing()
        self.unet.train()  # diffusers checkpoints only while in training mode
        try:
            yield
        finally:
            self.unet.disable_gradient_checkpointing()
            self.unet.eval()

    @contextmanager
    def _awake(self, *modules: nn.Module, instead: nn.Module | None = None) -> Iterator[None]:
        """Within the block these compute where the UNet does; the one `instead` of which they do waits."""
        if instead is not None:
            instead.to("cpu")
        for module in modules:
            module.to(self.device)
        try:
            yield
        finally:
            for module in modules:
                module.to("cpu")
            if instead is not None:
                instead.to(self.device)

    def _vae_awake(self) -> AbstractContextManager[None]:
        return self._awake(self.vae, instead=self.unet) if self.offload else nullcontext()

    def _cast(self, factor: Tensor) -> Tensor:
        return factor.to(self.device, self.dtype)

    @property
    def _latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and spread of raw latents, (1, C or 1, 1, 1): the VAE's, as the pipeline reads them."""
        config = self.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            mean, std = [0.0], [1.0]
        rows = [torch.tensor(values, device=self.device).view(1, -1, 1, 1) for values in (mean, std)]
        return rows[0], rows[1] / config.scaling_factor


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Loading takes a moment; the bars are for what takes long."""
    libraries = [library for library in (diffusers_log, transformers_log) if library.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


@contextmanager
def _quiet(on: bool) -> Iterator[None]:
    """Within the block, if `on`, diffusers does not warn: it would say the same again."""
    level = diffusers_log.get_verbosity()
    if on:
        diffusers_log.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_log.set_verbosity(level)


def _words(tokenizer: Any, prompt: str) -> list[int]:
    """All tokens of a prompt, without marks at its ends."""
    return tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]


def _chunks(tokenizer: Any, prompt: str) -> list[list[int]]:
    """Tokens of a prompt in rows of the tokenizer's length, each between marks and filled up; at least one row."""
    words, room = _words(tokenizer, prompt), tokenizer.model_max_length - 2
    parts = [words[start : start + room] for start in range(0, max(len(words), 1), room)]
    rows = [[tokenizer.bos_token_id, *part, tokenizer.eos_token_id] for part in parts]
    return [row + [tokenizer.pad_token_id] * (room + 2 - len(row)) for row in rows]


def _at_once(pixels: int) -> int:
    """As many pictures as have the pixels of SDXL's one: the VAE takes far more memory than anything else here."""
    return max(1, 1024**2 // pixels)


def _adds(down: Tensor, up: Tensor) -> Any:
    return lambda module, args, output: output + linear(linear(args[0], down), up)


def check_files(folder: Path, variant: str | None, command: str) -> str | None:
    """Refuse a folder with missing or damaged weights, by name; tell the variant that they are.

    Parameters
    ----------
    variant : None is fp16, if there is nothing else.
    command : what would fetch the folder, if that is what it takes.
    """
    cached = folder.parent.name == "snapshots"
    remedy = f"fetch it by {command}" if cached else "fetch or make the folder again"
    index = folder / "model_index.json"
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{index}: no such file; give the folder of a StableDiffusionXLPipeline") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{index}: not readable ({error}); fetch or make the folder again") from None

    half = False
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
        ("text_encoder_2", "model"),
    ):
        if part not in parts:
            raise UserError(f"{index}: no `{part}`; give the folder of a StableDiffusionXLPipeline")
        ending = f".{variant}.safetensors" if variant else ".safetensors"
        files = sorted((folder / part).glob(f"{name}*{ending}"))
        if not files:
            raise UserError(f"{folder / part / name}{ending}: no such file; {remedy}")
        for file in files:
            try:
                safe_open(str(file), framework="pt").keys()  # checks the header against the file's length
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file}: damaged ({error}); {remedy}") from None
        half = half or all(".fp16." in file.name for file in files)
    return "fp16" if half else variant
