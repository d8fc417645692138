"""Identity of a scorer's weights, and permission to fetch them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorarar.files import folder_sha256


def checkpoint(source: Path | str | None, model: Any) -> str | None:
    """The weights of a transformers model: SHA-256 of a folder's files, or the commit of a hub's model."""
    if source is None:
        return None
    return f"sha256:{folder_sha256(source)}" if Path(source).is_dir() else getattr(model.config, "_commit_hash", None)


@contextmanager
def hub(download: bool) -> Iterator[None]:
    """Without `download`, keep libraries from the network as `HF_HUB_OFFLINE=1` does.

    open_clip fetches weights, tokenizers and configurations of text towers through the hub's library, and hands on no
    argument that would forbid it.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not download
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def reason(error: BaseException, source: Path | str, download: bool = True) -> str:
    """The gist of a library's complaint about `source` in parentheses, and what may help."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"({line})" if download or Path(source).exists() else f"({line}); if it is not here yet, allow the download"
