"""The MARS² judge of the paper: a LLaVA critic, asked through its processor and chat template (Figures A1 and
A2).

LLaVA-Critic 7B and the miniature critic are the same class of model and take the same path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorarar.errors import UserError
from lorarar.scoring.images import as_pil, batches
from lorarar.scoring.judges import JudgePrompts, Question, Verdict

FIRST_WORD = re.compile(r"\W*(\w+)")


def read_answer(text: str) -> bool | None:
    """Yes or no by the first word, whatever its case; None for anything else."""
    match = FIRST_WORD.match(text)
    return {"yes": True, "no": False}.get(match.group(1).lower()) if match else None


def conversation(prompts: JudgePrompts, question: Question) -> list[dict]:
    """System and user turn of a question, the pictures standing where the prompt has `{image}`."""
    before, between, after = prompts.text(question).split("{image}")
    return [
        {"role": "system", "content": [{"type": "text", "text": prompts.system}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": before}, {"type": "image"},
                {"type": "text", "text": between}, {"type": "image"},
                {"type": "text", "text": after},
            ],
        },
    ]  # fmt: skip


class LlavaCritic:
    """Greedy answers of a `LlavaOnevisionForConditionalGeneration`, with the probabilities of its two
    answers.

    Parameters
    ----------
    model, processor : as transformers loads them.
    prompts : wording of the questions.
    name : what results call this judge.
    """

    def __init__(self, model: Any, processor: Any, prompts: JudgePrompts, name: str = "llava") -> None:
        self.model = model.eval()
        self.processor = processor
        self.prompts = prompts
        self.name = name
        # The processor pads on the left, so that every question of a batch ends where its answer begins.
        processor.tokenizer.padding_side = "left"
        self.yes, self.no = (
            sorted({number for word in words if (number := _single(processor.tokenizer, word)) is not None})
            for words in (("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no"))
        )

    @classmethod
    def load(cls, folder: Path | str, prompts: JudgePrompts, device: str = "cpu") -> LlavaCritic:
        """Load a local folder, or a hub id where the network allows.

        Raises
        ------
        UserError : it cannot be loaded.
        """
        from safetensors import SafetensorError
        from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

        try:
            processor = AutoProcessor.from_pretrained(folder)
            dtype = torch.float32 if device == "cpu" else torch.float16
            model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{folder}: transformers cannot load this critic ({reason})") from error
        return cls(model.to(device), processor, prompts, name=Path(folder).name)

    def inputs(self, questions: Sequence[Question]) -> dict[str, torch.Tensor]:
        """Tokens and pixels of questions, left-padded, ready for the model."""
        texts = [
            self.processor.apply_chat_template(conversation(self.prompts, question), add_generation_prompt=True)
            for question in questions
        ]
        pictures = [as_pil([question.reference, question.test]) for question in questions]
        return dict(self.processor(images=pictures, text=texts, padding=True, return_tensors="pt"))

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question], batch_size: int = 16) -> list[Verdict]:
        """One verdict per question, in order."""
        verdicts = []
        for batch in batches(questions, batch_size):
            inputs = {key: value.to(self.model.device) for key, value in self.inputs(batch).items()}
            if "pixel_values" in inputs:
                inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
            given = self.model.generate(
                **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            length = inputs["input_ids"].shape[1]
            texts = self.processor.tokenizer.batch_decode(given.sequences[:, length:], skip_special_tokens=True)
            chances = given.logits[0].float().softmax(-1)
            for text, chance in zip(texts, chances, strict=True):
                verdicts.append(Verdict(read_answer(text), self._probability(chance)))
        return verdicts

    def _probability(self, chance: torch.Tensor) -> float | None:
        """Chance of yes among yes and no at the first token."""
        if not self.yes or not self.no:
            return None
        yes, no = float(chance[self.yes].sum()), float(chance[self.no].sum())
        return yes / (yes + no) if yes + no > 0 else None


def _single(tokenizer: Any, word: str) -> int | None:
    """The token that stands for the whole word, if there is one."""
    numbers = tokenizer(word, add_special_tokens=False)["input_ids"]
    return numbers[0] if len(numbers) == 1 and numbers[0] != tokenizer.unk_token_id else None
