"""A word-level tokenizer for a world of a few hundred words, in the form transformers and open_clip read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows every word of `texts`, and brackets each text by `<start>` and `<end>`.

    `<end>` has the highest number, since CLIP takes its text feature where the largest token number stands.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    normalizer, splitter = Lowercase(), Whitespace()
    words = {word for text in set(texts) for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    tokens = ["<pad>", "<unk>", "<start>", *sorted(words), "<end>"]
    number = {token: number for number, token in enumerate(tokens)}
    inner = Tokenizer(WordLevel(number, unk_token="<unk>"))
    inner.normalizer, inner.pre_tokenizer = normalizer, splitter
    brackets = [(token, number[token]) for token in ("<start>", "<end>")]
    inner.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=brackets)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    )
