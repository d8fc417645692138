"""Members of the LoRA bank as training takes them: an adapter and its reference pictures, encoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from lorarar import pictures
from lorarar.data.catalog import Style, Subject
from stages.shared.base_model import Model
from stages.shared.context import Context

if TYPE_CHECKING:
    from torch import Tensor

    from lorarar.training.references import Entry


@dataclass(frozen=True)
class Member:
    """A subject or a style of the bank.

    Attributes
    ----------
    adapter : file of its LoRA; None for tasks that read only its pictures.
    images : files of its reference pictures.
    prompt : the text that its LoRA is trained on.
    """

    adapter: str | None
    images: tuple[str, ...]
    prompt: str

    def pixels(self, resolution: int) -> Tensor:
        """Reference pictures, cropped and scaled: (N, 3, H, W) in [-1, 1]."""
        from lorarar.training.references import centre_crop

        return pictures.as_tensor([centre_crop(pictures.read(path), resolution) for path in self.images])

    @cache  # noqa: B019  (the tasks of a process share its members)
    def load(self, model: Model, resolution: int) -> Entry:
        """The adapter and the encoded pictures, loaded once in each process."""
        from lorarar.lora.adapter import Adapter
        from lorarar.training.references import Entry, References

        assert self.adapter is not None
        references = References.encode(model.load(), self.pixels(resolution), [self.prompt] * len(self.images))
        return Entry(Adapter.load(self.adapter), references)


def bank_member(context: Context, entry: Subject | Style, adapter: bool = True) -> Member:
    """A subject or a style with the files that earlier stages have made for it."""
    images = tuple(str(path) for path in context.pictures(entry))
    return Member(str(context.adapter(entry)) if adapter else None, images, entry.prompt)
