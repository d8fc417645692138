"""What many tests stand on: a server of files, a browser, and a tiny base of SDXL's own classes with random weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if "TEST_GPU" not in os.environ:  # tests/gpu wants one; all others compare what a CPU computes
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from mirror import Mirror

from lorarar.lora.adapter import Adapter, Factors

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

WORDS = ["a", "dog", "cat", "car", "red", "in", "oil", "style", "painting", "sks"]


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell starts what it puts into the background deaf to Ctrl-C: the tests, and all that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    """A server of files on this machine."""
    server = Mirror()
    yield server
    server.close()


@pytest.fixture(params=["desk", "phone"])
def browser(request: pytest.FixtureRequest) -> Iterator[Chrome]:
    """A real Chromium that logs what its pages say and ask for, with a desk's window and as a phone."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("needs Debian's chromium and chromium-driver")
    width, height = {"desk": (1280, 900), "phone": (390, 844)}[request.param]
    options = ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={width},{height}"):
        options.add_argument(argument)
    if request.param == "phone":
        metrics = {"width": width, "height": height, "pixelRatio": 2, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options, Service(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline: 16 x 16 pictures, 4 x 8 x 8 latents, attention widths 32 and 64, v-prediction."""
    folder = tmp_path_factory.mktemp("tiny") / "base"
    save_tiny_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path):
    """The tiny base, in float32."""
    from lorarar.diffusion.backbone import Backbone

    return Backbone.load(tiny_folder, torch.float32)


@pytest.fixture
def adapters(tiny) -> tuple[Adapter, Adapter]:
    """A content and a style adapter for the tiny base, of ranks 4 and 2."""
    return random_adapter(tiny.unet, rank=4, seed=1), random_adapter(tiny.unet, rank=2, seed=2)


@pytest.fixture(scope="session")
def references(tiny):
    """Two References for the tiny base: content with three pictures, style with one."""
    from lorarar.training.references import References

    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1
    content = References.encode(tiny, images[:3], ["a sks dog"] * 3)
    return content, References.encode(tiny, images[3:], ["a car in oil painting style"])


def random_adapter(unet: torch.nn.Module, rank: int, seed: int, scale: float = 0.1) -> Adapter:
    """A LoRA of all attention projections, with random factors."""
    generator = torch.Generator().manual_seed(seed)
    layers = {
        path: Factors(
            torch.randn(rank, module.in_features, generator=generator) * scale,
            torch.randn(module.out_features, rank, generator=generator) * scale,
        )
        for path, module in unet.named_modules()
        if path.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))
    }
    return Adapter(layers)


def save_tiny_pipeline(folder: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _tokenizer(folder.parent / "vocabulary")
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "projection_dim": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        norm_num_groups=16,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
    )
    vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 1.0, 2.0, 1.5])
    scheduler = DDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**text)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)


def _tokenizer(folder: Path):
    from transformers import CLIPTokenizer

    # Whole words are reached by merging letters from the left, each prefix a token of its own.
    vocabulary = ["<|startoftext|>", "<|endoftext|>"]
    letters = sorted({letter for word in WORDS for letter in word})
    vocabulary += letters + [f"{letter}</w>" for letter in letters]
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges.append(f"{pieces[0]} {pieces[1]}")
            pieces[:2] = [pieces[0] + pieces[1]]
            vocabulary.append(pieces[0])
    folder.mkdir()
    unique = list(dict.fromkeys(vocabulary))
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(unique)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n")
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=16,
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )
