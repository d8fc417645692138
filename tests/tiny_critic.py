"""A LLaVA critic of the real class with a million random parameters, and a stand-in for the VAE's round trip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from lorarar.pocket.train.degradations import as_images, blurred_and_noisy
from lorarar.pocket.world.vocabulary import _words
from lorarar.scoring.judges import JudgePrompts
from lorarar.scoring.judges.verification import as_tensor

SIZE, PATCH = 64, 8
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def build_critic(prompts: JudgePrompts, style_words: list[str], *, patch: int = PATCH) -> tuple[Any, Any]:
    """A new model and its processor; the vocabulary is the words of the prompts, of the styles, and the two
    answers.

    Parameters
    ----------
    patch : side of a vision patch; an image becomes (64 / patch)² + 1 tokens, two of which go with each
        question.
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
    tokenizer = chat_tokenizer(words, ["<image>", "<video>", "<|im_start|>", "<|im_end|>"])
    number = tokenizer.convert_tokens_to_ids
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=96, intermediate_size=288, num_hidden_layers=4, num_attention_heads=4,
            image_size=SIZE, patch_size=patch, vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=288, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=number("<|im_end|>"), pad_token_id=number("<pad>"),
        ),
        image_token_index=number("<image>"), video_token_index=number("<video>"),
        image_grid_pinpoints=[[SIZE, SIZE]], vision_feature_layer=-1, tie_word_embeddings=True,
    )  # fmt: skip
    size = {"height": SIZE, "width": SIZE}
    pixels = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(**pixels, image_grid_pinpoints=[[SIZE, SIZE]]),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(**pixels),
        num_image_tokens=(SIZE // patch) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    model.generation_config.eos_token_id = number("<|im_end|>")
    model.generation_config.pad_token_id = number("<pad>")
    return model, processor


def chat_tokenizer(texts: Iterable[str], special: Sequence[str]) -> Any:
    """A tokenizer for a chat: the words of `texts` and some special tokens, nothing added around a text."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    inner, _ = _words(["<pad>", "<unk>", *special], texts, [])
    inner.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token=special[-1],
        padding_side="left",
    )


class Softened:
    """Blur and noise alone, for tests and for the time before a VAE exists."""

    key = "softened"

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        return as_images(blurred_and_noisy(as_tensor(images), generator))
