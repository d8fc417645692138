"""Members of the LoRA bank as training takes them: an adapter and its reference pictures, encoded."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from lorarar import pictures

if TYPE_CHECKING:
    from lorarar.data.catalog import Style, Subject
    from lorarar.diffusion.backbone import Backbone
    from lorarar.training.hypernet import Entry
    from stages.shared.context import Context


def described(context: Context, member: Subject | Style) -> dict[str, Any]:
    """What a task passes to `entry`."""
    return {
        "adapter": str(context.adapter(member)),
        "images": [str(path) for path in context.pictures(member)],
        "prompt": member.prompt,
    }


def entry(model: Backbone, resolution: int, adapter: str, images: list[str], prompt: str) -> Entry:
    """Load and encode one member, once in each process."""
    return _entry(model, resolution, adapter, tuple(images), prompt)


@cache
def _entry(model: Backbone, resolution: int, adapter: str, images: tuple[str, ...], prompt: str) -> Entry:
    from lorarar.diffusion.backbone import to_tensor
    from lorarar.lora.adapter import Adapter
    from lorarar.training.hypernet import Entry
    from lorarar.training.references import References, fit

    references = [fit(pictures.read(path), resolution) for path in images]
    encoded = References.encode(model, to_tensor(references), [prompt] * len(references))
    return Entry(Adapter.load(adapter), encoded)
