"""Weights of scoring models: their identity, and whether they may be downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorarar.errors import first_line
from lorarar.files import folder_sha256


def checkpoint(source: Path | str | None, model: Any) -> str | None:
    """Identity of a transformers model's weights: SHA-256 of a folder's files, or the commit of a hub's model."""
    if source is None:
        return None
    return f"sha256:{folder_sha256(source)}" if Path(source).is_dir() else getattr(model.config, "_commit_hash", None)


@contextmanager
def offline_unless(download: bool) -> Iterator[None]:
    """Keeps libraries from the network in the block, as `HF_HUB_OFFLINE=1` does, unless `download` is true.

    open_clip fetches weights, tokenizers and configurations of text towers through the hub's library, and has no
    argument that forbids it.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not download
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def reason(error: BaseException, source: Path | str, download: bool = True) -> str:
    """First line of a library's error about `source` in parentheses, and a hint if a download may help."""
    hint = "" if download or Path(source).exists() else "; if it is not here yet, allow the download"
    return f"({first_line(error)}){hint}"
