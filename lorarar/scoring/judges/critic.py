"""The MARS² judge of the paper: a LLaVA critic, asked through its processor and chat template (Figures A1 and A2).

LLaVA-Critic 7B and the miniature critic are the same class of model. The 7B weights in transformers' form are, for
example, `FuryMartin/llava-critic-7b-hf` on the hub, an unofficial conversion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt

from lorarar.errors import UserError
from lorarar.scoring.images import as_pil, batches
from lorarar.scoring.judges import MAX_UNANSWERED, JudgePrompts, Question, Verdict, conversation, read_answer
from lorarar.scoring.weights import checkpoint, reason


class LlavaCritic:
    """Judge that takes a `LlavaOnevisionForConditionalGeneration`'s greedy answers, and their probabilities.

    Parameters
    ----------
    model, processor : as transformers loads them.
    prompts : wording of the questions.
    name : names this judge in results.
    longest_side : larger pictures are reduced to this many pixels before the processor sees them. The authors'
        released script reduces to 512; the paper does not say, and by default nothing is reduced.
    max_unanswered : larger shares of unanswered questions are an error, see `CachedJudge`.
    source : folder of the weights, or their name on the hub.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        prompts: JudgePrompts,
        name: str = "llava",
        *,
        longest_side: int | None = None,
        max_unanswered: float = MAX_UNANSWERED,
        source: Path | str | None = None,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.prompts = prompts
        self.name = name
        self.longest_side = longest_side
        self.max_unanswered = max_unanswered
        self.source = source
        # The processor pads on the left, so that every question of a batch ends where its answer begins.
        processor.tokenizer.padding_side = "left"
        self.yes, self.no = (
            sorted({number for word in words if (number := _single(processor.tokenizer, word)) is not None})
            for words in (("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no"))
        )

    @classmethod
    def load(
        cls,
        source: Path | str,
        prompts: JudgePrompts,
        device: str = "cpu",
        *,
        longest_side: PositiveInt | None = None,
        max_unanswered: Annotated[float, Field(ge=0, le=1)] = MAX_UNANSWERED,
        four_bit: bool = False,
        device_map: str | dict[str, Any] | None = None,
        revision: str | None = None,
        download: bool = False,
    ) -> LlavaCritic:
        """Loads a local folder, or a model of the hub by its name.

        The weights are float16 on an accelerator and float32 on a CPU.

        Parameters
        ----------
        source, prompts, device : weights, wording, and device of the model.
        longest_side, max_unanswered : see the class.
        four_bit : quantise the weights to NF4 by bitsandbytes, so that 7B fit 8 GB; answers change a little.
        device_map : spreads the model over devices by accelerate, such as "auto"; replaces `device`.
        revision : commit, tag or branch of a hub's model.
        download : download a hub model that is not on this machine yet.

        Raises
        ------
        UserError : it cannot be loaded, or bitsandbytes is needed and not installed.
        """
        from importlib.util import find_spec

        from safetensors import SafetensorError
        from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

        accelerated = device != "cpu" if device_map is None else torch.cuda.is_available()
        dtype = torch.float16 if accelerated else torch.float32
        options: dict[str, Any] = {"dtype": dtype, "device_map": device_map}
        if four_bit:
            if find_spec("bitsandbytes") is None:
                raise UserError(f"{source}: 4-bit weights need bitsandbytes; `pip install bitsandbytes` or do without")
            from transformers import BitsAndBytesConfig

            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
            )
            # Quantised weights cannot be moved afterwards.
            options["device_map"] = device_map or {"": device}
        where = {"revision": revision or "main", "local_files_only": not download}
        try:
            processor = AutoProcessor.from_pretrained(source, **where)
            model = LlavaOnevisionForConditionalGeneration.from_pretrained(source, **where, **options)
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, UnpicklingError) as error:
            why = reason(error, source, download)
            raise UserError(f"{source}: transformers cannot load this critic {why}") from error
        if options["device_map"] is None:
            model = model.to(device)
        settings: dict[str, Any] = {"longest_side": longest_side, "max_unanswered": max_unanswered}
        return cls(model, processor, prompts, name=Path(source).name, source=source, **settings)

    @property
    def identity(self) -> str:
        """Name, weights, precision and size of pictures."""
        if self.source is None:
            raise ValueError("a critic that was not loaded has no identity; give it its source")
        numbers = "4 bits" if getattr(self.model, "is_loaded_in_4bit", False) else self.model.dtype
        return f"{self.name} {checkpoint(self.source, self.model)} {numbers} longest side {self.longest_side}"

    def inputs(self, questions: Sequence[Question]) -> dict[str, torch.Tensor]:
        """Model inputs of questions: tokens, padded on the left, and pixels."""
        texts = [
            self.processor.apply_chat_template(conversation(self.prompts, question), add_generation_prompt=True)
            for question in questions
        ]
        pictures = [as_pil([question.reference, question.test], self.longest_side) for question in questions]
        return dict(self.processor(images=pictures, text=texts, padding=True, return_tensors="pt"))

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question], batch_size: int = 16) -> list[Verdict]:
        """Gives one verdict per question, in order."""
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
                verdict = self.prompts.verdict(read_answer(text), self._probability(chance))
                verdicts.append(replace(verdict, why=f"text {text!r}") if verdict.yes is None else verdict)
        return verdicts

    def _probability(self, chance: torch.Tensor) -> float | None:
        """Probability of yes among yes and no at the first token."""
        if not self.yes or not self.no:
            return None
        yes, no = float(chance[self.yes].sum()), float(chance[self.no].sum())
        return yes / (yes + no) if yes + no > 0 else None


def _single(tokenizer: Any, word: str) -> int | None:
    """Token id of a word that is one token; None for other words."""
    numbers = tokenizer(word, add_special_tokens=False)["input_ids"]
    return numbers[0] if len(numbers) == 1 and numbers[0] != tokenizer.unk_token_id else None
