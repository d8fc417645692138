"""Reads and writes safetensors files, whole or not at all.

The library's own writer takes only tensors that are all in memory, and orders metadata differently in each process.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorarar.errors import UserError, first_line
from lorarar.files import atomic
from lorarar.lora.factors import finite
from lorarar.lora.lazy import blanks

BURST = 1 << 25
"""Bytes that are sent to the disk together while more are computed."""

# safetensors' names of the dtypes that factors and checkpoints have.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a safetensors file; raises `UserError` if it is missing or damaged.

    The tensors are views of the file's pages, read when first touched; writing to them does not change the file.
    """
    if _is_pickle(path):
        return _read_pickle(path), {}
    with _opened(path) as file:
        names = file.keys()  # not a mapping: it cannot be iterated over itself
        return {key: file.get_tensor(key) for key in names}, file.metadata() or {}


class Stored(NamedTuple):
    """A tensor in a safetensors file, not yet read."""

    file: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file

    @property
    def blank(self) -> Tensor:
        """The tensor's dtype and shape, without numbers."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def read(self) -> Tensor:
        """The tensor in memory that is free again once nobody holds it: pages of a mapped file would stay.

        Raises
        ------
        UserError
            The file is gone, or shorter than it was.
        """
        tensor = torch.empty(self.shape, dtype=self.dtype)
        try:
            with open(self.file, "rb") as file:
                file.seek(self.offset)
                size = file.readinto(tensor.flatten().view(torch.uint8).numpy().data)
        except OSError as error:
            raise UserError(f"{self.file}: cannot be read ({error.strerror}); run again") from None
        if size != tensor.nbytes:
            raise UserError(f"{self.file}: ends within {self.key}; it was changed meanwhile, run again")
        return tensor


def stored(path: Path | str) -> tuple[dict[str, Stored], dict[str, str]]:
    """The places of a safetensors file's tensors by their keys, and its metadata: only the header is read.

    Raises
    ------
    UserError
        The file is missing, damaged or a pickle, or has numbers of an unknown kind.
    """
    if _is_pickle(path):
        raise UserError(f"{path}: a pickle, which is only read whole; convert it to safetensors first")
    with _opened(path) as checked, open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        metadata = checked.metadata() or {}
    header.pop("__metadata__", None)
    kinds, found = {name: dtype for dtype, name in _DTYPES.items()}, {}
    for key, entry in header.items():
        if entry["dtype"] not in kinds:
            raise UserError(
                f"{path}: {key} holds numbers of kind {entry['dtype']}; give the file in fp16, bf16 or fp32"
            )
        place = 8 + size + entry["data_offsets"][0]
        found[key] = Stored(Path(path), key, kinds[entry["dtype"]], tuple(entry["shape"]), place)
    return found, metadata


@contextmanager
def _opened(path: Path | str) -> Iterator[Any]:
    """The library's view of a safetensors file, whose header it has checked; its errors are the user's."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a .safetensors file") from None
    except (SafetensorError, OSError) as error:
        reason = _other_content(path) or f"not a readable safetensors file ({error}); fetch or make it again"
        raise UserError(f"{path}: {reason}") from None


def _read_pickle(path: Path | str) -> dict[str, Tensor]:
    """Tensors of what torch.save wrote (.pt, .bin, .ckpt); `weights_only` runs no code of the file."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        reason = "holds more than tensors, which could run code, or is damaged"
        raise UserError(
            f"{path}: a pickle that {reason} ({first_line(error)[:80]}); take a .safetensors file"
        ) from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if isinstance(found, list):
        found = dict(enumerate(found))
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: a pickle without named tensors; convert it to safetensors with the tool that made it")
    return {str(key): tensor.detach() for key, tensor in found.items()}


def _other_content(path: Path | str) -> str | None:
    """Message about a file that is something else: a pointer, a page, an error; None if it may be safetensors."""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
            if start.startswith(b"version https://git-lfs"):
                return "a git-lfs pointer, not the file itself; run `git lfs pull`, or download the file again"
            text = start.lstrip().lower()
            if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
                return "a web page, not a LoRA; the download needs a login or another address"
            if text.startswith((b"{", b"[")) and b'"' in text and start[8:9] != b"{":
                shown = start[:80].decode("utf-8", "replace").strip()
                return f"a JSON message, not a LoRA ({shown}); download the file again"
            size = int.from_bytes(start[:8], "little")
            if size > 100_000_000:
                return None
            file.seek(8)
            metadata = json.loads(file.read(size)).get("__metadata__", {})
            wrong = next((key for key, value in metadata.items() if not isinstance(value, str)), None)
    except (OSError, ValueError, AttributeError, RecursionError, MemoryError):
        return None
    if wrong is None:
        return None
    return f"entry {wrong} of __metadata__ is {metadata[wrong]!r}, not a text; write it as a text"


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all; equal inputs make equal bytes.

    Lazy tensors are computed one after the other, in the order of the mapping, while earlier ones go to the disk.

    Raises
    ------
    UserError
        A tensor holds NaN or infinity or has a dtype that cannot be stored, or the disk is full.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted((metadata or {}).items()))}
    places, end = {}, 0
    for key, tensor in sorted(blanks(tensors).items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        if tensor.dtype not in _DTYPES:
            raise UserError(
                f"{path}: {key} has dtype {tensor.dtype}, which cannot be stored; choose fp32, fp16 or bf16"
            )
        places[key], end = end, end + tensor.nbytes
        header[key] = {"dtype": _DTYPES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [places[key], end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that numbers are aligned
    with atomic(path) as temporary, open(temporary, "wb", buffering=0) as file, ThreadPoolExecutor(1) as background:
        on_disk, unsaved = Future[None](), 0
        on_disk.set_result(None)

        def put(place: int, data: memoryview) -> None:
            file.seek(place)
            while data:  # the system may take only a part, for instance the last one that fits on the disk
                data = data[file.write(data) :]

        put(0, memoryview(struct.pack("<Q", len(text)) + text))
        for key, tensor in tensors.items():
            tensor = tensor.detach().cpu().contiguous()
            assert header[key]["shape"] == [*tensor.shape] and header[key]["dtype"] == _DTYPES[tensor.dtype], key
            if not finite(tensor):
                kind = str(tensor.dtype).removeprefix("torch.")
                raise UserError(
                    f"{path}: {key} would hold NaN or infinity in {kind}; nothing is written; try -d fp32 or bf16"
                )
            put(8 + len(text) + places[key], tensor.flatten().view(torch.uint8).numpy().data)
            unsaved += tensor.nbytes
            if unsaved > BURST and on_disk.done():  # the disk need not wait for the last of them
                on_disk.result()  # raises what the disk said
                on_disk, unsaved = background.submit(os.fsync, file.fileno()), 0
        on_disk.result()


def _is_pickle(path: Path | str) -> bool:
    """True if the file begins as those of torch.save do: as a zip archive, or with pickle's protocol mark."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError:
        return False
    return start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[8:] != b"{")  # { : damaged safetensors
