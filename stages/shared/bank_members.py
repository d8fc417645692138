"""Members of the LoRA bank as training takes them: an adapter and its reference pictures, encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorarar import pictures
from lorarar.data.catalog import Style, Subject
from stages.shared.base_model import Model
from stages.shared.context import Context

if TYPE_CHECKING:
    from torch import Tensor

    from lorarar.training.references import Entry, References


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

    @property
    def name(self) -> str:
        """The name of the subject or the style: that of the folder of its pictures."""
        return Path(self.images[0]).parent.name

    def pixels(self, resolution: int) -> Tensor:
        """Reference pictures, cropped and scaled: (N, 3, H, W) in [-1, 1]."""
        from lorarar.training.references import centre_crop

        return pictures.as_tensor([centre_crop(pictures.read(path), resolution) for path in self.images])

    def references(self, model: Model, resolution: int) -> References:
        """The reference pictures, encoded."""
        from lorarar.training.references import References

        return References.encode(model.load(), self.pixels(resolution), [self.prompt] * len(self.images))

    @lru_cache(maxsize=16)  # noqa: B019  (the tasks of a process, one after the other, share some members)
    def load(self, model: Model, resolution: int) -> Entry:
        """The adapter and the encoded pictures."""
        from lorarar.lora.adapter import Adapter
        from lorarar.training.references import Entry

        assert self.adapter is not None
        return Entry(Adapter.load(self.adapter), self.references(model, resolution))


@dataclass(frozen=True)
class Streamed(Sequence["Entry"]):
    """Members that are read when asked for and not kept, so that memory does not grow with their number.

    Attributes
    ----------
    folder : where encoded pictures are kept, as encoding takes longer than reading.
    """

    members: Sequence[Member]
    model: Model
    resolution: int
    folder: Path

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: Any) -> Any:
        from lorarar.lora.adapter import Adapter
        from lorarar.training.references import Entry, References

        member = self.members[index]
        assert member.adapter is not None
        file = self.folder / f"{member.name}.pt"
        if not file.exists():
            member.references(self.model, self.resolution).save(file)
        return Entry(Adapter.load(member.adapter), References.load(file, self.model.load()))


def bank_member(context: Context, entry: Subject | Style, adapter: bool = True) -> Member:
    """A subject or a style with the files that earlier stages have made for it."""
    images = tuple(str(path) for path in context.pictures(entry))
    return Member(str(context.adapter(entry)) if adapter else None, images, entry.prompt)
