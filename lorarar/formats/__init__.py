"""LoRA files on disk: safetensors in, low-rank factors out, and back.

A format is a module with `PREFIXES`, how its keys begin, `FOLDED`, the metadata whose meaning reading uses up,
`parse(tensors, metadata, source)` and `keys(layers)`. All know a layer by its component and the module path in it:
`unet.<path>`, `text_encoder.<path>` or `text_encoder_2.<path>`. What every format shares, the safetensors container
and its failures, is here.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lorarar.errors import UserError
from lorarar.files import atomic, write_json
from lorarar.formats import diffusers, kohya, peft
from lorarar.formats.factors import Layers, finite

READERS: dict[str, ModuleType] = {"diffusers": diffusers, "peft": peft, "kohya": kohya}
WRITERS: dict[str, Callable[[Layers], dict[str, Tensor]]] = {
    "diffusers": diffusers.keys,
    "peft": peft.keys,
    "kohya": kohya.keys,
    "kohya-sgm": partial(kohya.keys, sgm=True),
}

BURST = 1 << 25
"""Bytes that are sent to the disk together while more are computed."""

# What safetensors calls the dtypes of factors.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}

# Updates that are not up @ down, by what their keys contain.
_OTHERS = {
    r"\.hada_": "LoHa (LyCORIS)",
    r"\.lokr_": "LoKr (LyCORIS)",
    r"\.lora_mid\.": "LoCon with Tucker factors (LyCORIS)",
    r"\.dora_scale|lora_magnitude_vector": "DoRA",
    r"\.diff(?:_b)?$": "full differences of weights",
}
_OTHER = re.compile("|".join(_OTHERS))


def read(path: Path | str) -> tuple[Layers, dict[str, str], str]:
    """Factors of a LoRA file in any of the formats, which is told by the keys.

    Tensors are views of the memory-mapped file, except each `up` that alpha changes.

    Returns
    -------
    layers
        `<component>.<module path>` -> (down, up), with alpha / r folded into `up`: (r, n_in) and (m_out, r) of a
        linear layer, (r, c_in, h, w) and (c_out, r, 1, 1) of a convolution.
    metadata
        The file's metadata, without the entries whose meaning was folded into the factors.
    format
        A key of `READERS`.

    Raises
    ------
    UserError
        The file is missing, damaged, or holds something a merge would silently get wrong.
    """
    tensors, metadata = read_tensors(path)
    if key := next(filter(_OTHER.search, tensors), None):
        name = next(name for mark, name in _OTHERS.items() if re.search(mark, key))
        raise UserError(f"{path}: {key} is {name}, not part of a plain LoRA; convert the file to one first")
    format = _detect(tensors, path)
    layers = READERS[format].parse(tensors, metadata, str(path))
    return layers, {key: value for key, value in metadata.items() if key not in READERS[format].FOLDED}, format


def write(
    path: Path | str,
    layers: Layers,
    metadata: Mapping[str, str],
    format: str = "diffusers",
    compute: Callable[[str], tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Write factors with alpha = rank; equal inputs make equal bytes.

    Beside a peft file its `adapter_config.json` is written. "kohya-sgm" is kohya with SDXL's original block names.

    Parameters
    ----------
    compute
        Gives, when they are written, the factors of a layer that `layers` has on the device "meta": dtypes and shapes.

    Raises
    ------
    UserError
        The format is unknown or has no name for a layer, or a factor holds NaN or infinity.
    """
    if format not in WRITERS:
        raise UserError(f"format {format} is unknown; choose one of {', '.join(WRITERS)}")
    extra = diffusers.metadata(layers) if format == "diffusers" else {}
    configuration = peft.adapter_config(layers) if format == "peft" else {}
    keys = WRITERS[format]

    def computed() -> Iterator[tuple[str, Tensor]]:
        for layer, factors in layers.items():
            yield from keys({layer: compute(layer) if compute and factors[0].is_meta else factors}).items()

    with ExitStack() as all_or_nothing:
        for other in beside(path, format):
            write_json(all_or_nothing.enter_context(atomic(other)), configuration)
        write_tensors(path, keys(layers), {**metadata, **extra}, computed())


def beside(path: Path | str, format: str) -> list[Path]:
    """What `write` writes beside `path`: peft keeps its configuration in a file of its own."""
    return [Path(path).with_name(peft.CONFIGURATION)] if format == "peft" else []


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, with failures told in the user's terms.

    The tensors are views of the file's pages, read when first touched; writing to them leaves the file alone.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            names = file.keys()  # not a mapping: it cannot be iterated over itself
            return {key: file.get_tensor(key) for key in names}, file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a .safetensors file") from None
    except (SafetensorError, OSError) as error:
        if _is_pickle(path):
            raise UserError(
                f"{path}: a pickle, which can run code when opened, so it is not read; convert it to safetensors first"
            ) from None
        raise UserError(f"{path}: not a readable safetensors file ({error}); fetch or make it again") from None


def write_tensors(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    stream: Iterable[tuple[str, Tensor]] | None = None,
) -> None:
    """Write a safetensors file whole or not at all; equal inputs make equal bytes.

    The library itself writes only what is all in memory, and metadata in a new order in each process.

    Parameters
    ----------
    stream
        Gives the tensors with their keys, in any order, where `tensors` has no more than their dtypes and shapes.

    Raises
    ------
    UserError
        A tensor holds NaN or infinity, or is of a dtype that files of LoRAs have not, or the disk is full.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted((metadata or {}).items()))}
    places, end = {}, 0
    for key, tensor in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        if tensor.dtype not in _DTYPES:
            raise UserError(f"{path}: {key} is of {tensor.dtype}, which is not written; give another dtype")
        places[key], end = end, end + tensor.nbytes
        header[key] = {"dtype": _DTYPES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [places[key], end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that numbers are aligned
    with atomic(path) as temporary, open(temporary, "wb", buffering=0) as file, ThreadPoolExecutor(1) as beside:
        on_disk, unsaved = Future[None](), 0
        on_disk.set_result(None)

        def put(place: int, data: memoryview) -> None:
            file.seek(place)
            while data:  # the system may take it in parts, the last before a full disk too
                data = data[file.write(data) :]

        put(0, memoryview(struct.pack("<Q", len(text)) + text))
        for key, tensor in tensors.items() if stream is None else stream:
            tensor = tensor.detach().to("cpu", tensors[key].dtype).contiguous()
            if not finite(tensor):
                kind = str(tensor.dtype).removeprefix("torch.")
                raise UserError(f"{path}: {key} would hold NaN or infinity in {kind}; nothing is written")
            put(8 + len(text) + places[key], tensor.flatten().view(torch.uint8).numpy().data)
            unsaved += tensor.nbytes
            if unsaved > BURST and on_disk.done():  # the disk need not wait for the last of them
                on_disk.result()  # raises what the disk said
                on_disk, unsaved = beside.submit(os.fsync, file.fileno()), 0
        on_disk.result()


def _detect(keys: Iterable[str], path: Path | str) -> str:
    for key in keys:
        for name, format in READERS.items():
            if key.startswith(format.PREFIXES):
                return name
    found = next(iter(keys), "nothing")
    raise UserError(f"{path}: no UNet LoRA as {', '.join(READERS)} name it, but {found}; give the file of a LoRA")


def _is_pickle(path: Path | str) -> bool:
    """Whether a file that is not safetensors begins as torch.save's do: a zip archive, or pickle's protocol mark."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError:
        return False
    return start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[8:] != b"{")  # { : damaged safetensors
