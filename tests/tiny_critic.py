"""A LLaVA critic of the real class with a million random parameters, and a stand-in for the VAE's round trip."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lorarar.pocket.train.degradations import as_images, blurred_and_noisy
from lorarar.scoring.judges import JudgePrompts
from lorarar.scoring.judges.verification import as_tensor

SIZE, PATCH = 64, 16
SPECIAL = ["<pad>", "<unk>", "<image>", "<video>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def build_critic(prompts: JudgePrompts, style_words: list[str]) -> tuple[Any, Any]:
    """A model and its processor, whose vocabulary is the words of the prompts, of the styles, and the two answers.

    An image becomes (64 / 16)² + 1 tokens, and each question has two images.
    """
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    words = [prompts.system, prompts.subject, prompts.style, *style_words, "Yes No system user assistant"]
    tokenizer = _tokenizer(words)
    number = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    small = {"num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 288}
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=96, image_size=SIZE, patch_size=PATCH, vision_use_head=False, **small
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=128, num_key_value_heads=4, max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=number["<|im_end|>"], pad_token_id=number["<pad>"], **small,
        ),
        image_token_index=number["<image>"], video_token_index=number["<video>"],
        image_grid_pinpoints=[[SIZE, SIZE]], vision_feature_layer=-1, tie_word_embeddings=True,
    )  # fmt: skip
    pixels = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(**pixels, image_grid_pinpoints=[[SIZE, SIZE]]),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(**pixels),
        num_image_tokens=(SIZE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    model.generation_config.eos_token_id = number["<|im_end|>"]
    model.generation_config.pad_token_id = number["<pad>"]
    return model, processor


def _tokenizer(texts: list[str]) -> Any:
    """A word-level tokenizer of a chat: lower case, special tokens, nothing added around a text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(unk_token="<unk>"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    inner.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>", padding_side="left"
    )


class Softened:
    """Blur and noise, which tests use instead of the VAE's round trip."""

    key = "softened"

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        return as_images(blurred_and_noisy(as_tensor(images), generator))
