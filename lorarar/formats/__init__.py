"""LoRA files on disk: safetensors in, low-rank factors out, and back.

A format is a module with `parse(tensors, metadata, source)` and `keys(layers)`. What every format shares, the
safetensors container and its failures, is here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lorarar.errors import UserError
from lorarar.files import atomic
from lorarar.formats import diffusers

if TYPE_CHECKING:
    from torch import Tensor

Layers = dict[str, tuple["Tensor", "Tensor"]]


def read(path: Path | str) -> tuple[Layers, dict[str, str]]:
    """Factors and metadata of a LoRA file.

    Returns
    -------
    layers
        UNet module path -> (down (r, n_in), up (m_out, r)), with alpha / r folded into `up`.
    metadata
        The file's metadata, without the entries whose meaning was folded into the factors.

    Raises
    ------
    UserError
        The file is missing, damaged, or holds something a merge would silently get wrong.
    """
    tensors, metadata = read_tensors(path)
    layers = diffusers.parse(tensors, metadata, str(path))
    return layers, {key: value for key, value in metadata.items() if key not in diffusers.FOLDED}


def write(path: Path | str, layers: Mapping[str, tuple[Tensor, Tensor]], metadata: Mapping[str, str]) -> None:
    """Write factors in diffusers' format; equal inputs make equal bytes."""
    write_tensors(path, diffusers.keys(layers), metadata)


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, with failures told in the user's terms."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            names = file.keys()  # not a mapping: it cannot be iterated over itself
            return {key: file.get_tensor(key) for key in names}, file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a .safetensors file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); fetch or make it again") from None


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all; equal inputs make equal bytes."""
    from safetensors.torch import save_file

    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with atomic(path) as temporary:
        save_file(contiguous, str(temporary), metadata=dict(metadata or {}))
        _sort_header(temporary)


def _sort_header(path: Path) -> None:
    """Sort a safetensors header's metadata, which the library writes in a new order in each process."""
    with open(path, "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # tensor offsets count from the header's end, so its length must stay
            file.seek(8)
            file.write(text.ljust(length))
