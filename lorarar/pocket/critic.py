"""The miniature MARS² critic: a `LlavaOnevisionForConditionalGeneration` of a million parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorarar.pocket.train.judge_datasets import Workshop
from lorarar.pocket.train.judges import generators, pair_views, report
from lorarar.pocket.train.shards import Columns
from lorarar.pocket.train.trainer import accelerator, fit, whole_files
from lorarar.pocket.world.vocabulary import chat_tokenizer
from lorarar.scoring.judges import JudgePrompts, Kind, Question
from lorarar.scoring.judges.critic import LlavaCritic
from lorarar.scoring.judges.verification import KINDS

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


class Comparison(nn.Module):
    """A vision tower under a siamese head with one output per question: it teaches the tower what to look
    at.
    """

    def __init__(self, tower: nn.Module, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.summary = nn.Linear(2 * width, 128)
        self.head = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, len(KINDS)))

    def forward(self, reference: Tensor, test: Tensor) -> Tensor:
        """(n, 3, 64, 64) twice -> (n, questions) logits of yes."""
        tokens = self.tower(pixel_values=torch.cat([reference, test])).last_hidden_state
        a, b = self.summary(torch.cat([tokens.mean(1), tokens.std(1)], dim=1)).chunk(2)
        return self.head(torch.cat([(a - b).abs(), a * b], dim=1))


def train_critic(
    shop: Workshop,
    out: Path,
    *,
    steps: int = 1200,
    batch: int = 32,
    count: int = 30000,
    rate: float = 1e-3,
    warm_steps: int = 3000,
    checked: int = 300,
) -> dict[str, float]:
    """Train the miniature critic on both questions and write it as a transformers folder.

    Its vision tower is warmed up first, for `warm_steps` under a siamese head that is then dropped: with the
    language model on top, a step costs several times as much. `checked` pairs of each kind measure it at the
    end.

    It learns the first word of its answer alone. The tokens come from the real processor; as a question's
    words are always the same ones, they are tokenised once and the pixels are put in as the processor would.
    """
    torch.manual_seed(shop.seed)
    prompts = JudgePrompts.load(shop.prompts)
    words = sorted({style.words for style in shop.world.catalog.styles.values()})
    model, processor = build_critic(prompts, words)
    critic = LlavaCritic(model, processor, prompts)
    data = {kind: shop.pairs(kind, count) for kind in KINDS}
    blank = np.zeros((SIZE, SIZE, 3), np.uint8)
    questions = [
        Question("subject", blank, blank),
        *(Question("style", blank, blank, word) for word in words),
    ]
    device = accelerator()
    model.to(device)
    tokens = {key: value.to(device) for key, value in critic.inputs(questions).items()}
    yes, no = processor.tokenizer.convert_tokens_to_ids(["yes", "no"])

    half = batch // 2

    def pairs(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Half a batch about subjects, then half a batch about styles; and which question is asked."""
        rng, generator = generators(shop.seed, step)
        parts = [
            pair_views(data[kind], rng.integers(len(data[kind]["label"]), size=half), kind, generator) for kind in KINDS
        ]
        reference, test, label = (torch.cat(columns) for columns in zip(*parts, strict=True))
        which = np.concatenate([np.zeros(half, int), rng.integers(1, len(questions), size=half)])
        return reference, test, label, torch.from_numpy(which).to(device)

    def warm_loss(reference: Tensor, test: Tensor, label: Tensor, _: Tensor) -> Tensor:
        logits = comparison(reference, test).float()
        asked = torch.cat([logits[:half, 0], logits[half:, 1]])
        return F.binary_cross_entropy_with_logits(asked, label)

    def loss(reference: Tensor, test: Tensor, label: Tensor, which: Tensor) -> Tensor:
        output = model(
            input_ids=tokens["input_ids"][which],
            attention_mask=tokens["attention_mask"][which],
            pixel_values=torch.stack([reference, test], dim=1).flatten(0, 1)[:, None],
            image_sizes=torch.full((2 * batch, 2), SIZE, device=device),
            batch_num_images=torch.full((batch,), 2, device=device),
            logits_to_keep=1,
        )
        return F.cross_entropy(output.logits[:, -1].float(), torch.where(label > 0.5, yes, no))

    comparison = Comparison(model.model.vision_tower, model.config.vision_config.hidden_size).to(device)
    warm = shop.work / "critic-vision.pt"
    fit(comparison, pairs, warm_loss, name="critic's vision", steps=warm_steps, learning_rate=rate, checkpoint=warm)
    fit(
        model, lambda step: pairs(warm_steps + step), loss, name="critic", steps=steps, learning_rate=rate,
        checkpoint=shop.work / "critic.pt", replay=False,
    )  # fmt: skip
    model.cpu()
    figures: dict[str, float] = {}
    for kind in KINDS:

        def answers(pairs: Columns, kind: Kind = kind) -> list[bool | None]:
            asked = [
                Question(kind, reference, test, words[index % len(words)])
                for index, (reference, test) in enumerate(zip(pairs["reference"], pairs["test"], strict=True))
            ]
            return [verdict.yes for verdict in critic.answer(asked)]

        figures |= {
            f"{kind}_{key}": value for key, value in report(shop, kind, out / f"{kind}.json", answers, checked).items()
        }
    with whole_files(out) as folder:
        model.half().save_pretrained(folder)
        processor.save_pretrained(folder)
    return figures
