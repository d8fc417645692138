"""Members of the LoRA bank as training takes them: an adapter and its reference pictures, encoded."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lorarar import pictures
from stages.context import backbone

if TYPE_CHECKING:
    from lorarar.hypernet_training import Entry


@cache
def entry(base: Path, adapter: Path, images: tuple[Path, ...], prompt: str) -> Entry:
    """Load and encode one member, once in each process."""
    from lorarar.adapter import Adapter
    from lorarar.backbone import to_tensor
    from lorarar.hypernet_training import Entry
    from lorarar.references import References

    references = [pictures.read(path) for path in images]
    encoded = References.encode(backbone(base, exact=True), to_tensor(references), [prompt] * len(references))
    return Entry(Adapter.load(adapter), encoded)
