"""LoRA files on disk: safetensors in, low-rank factors out, and back.

A format is a module with `PREFIXES`, which its keys begin with, `FOLDED`, metadata keys that reading applies (alpha)
and drops, `parse(tensors, metadata, source)` and `tensors(layer, factors)`. A layer's name is its component and the
module path in it: `unet.<path>`, `text_encoder.<path>` or `text_encoder_2.<path>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from lorarar.errors import UserError
from lorarar.files import atomic, write_json
from lorarar.lora import container, diffusers, kohya, peft
from lorarar.lora.factors import Factors, Layers
from lorarar.lora.lazy import Lazy, blanks
from lorarar.parallel import one_thread

READERS: dict[str, ModuleType] = {"diffusers": diffusers, "peft": peft, "kohya": kohya}
WRITERS: dict[str, Callable[[str, Factors], dict[str, Tensor]]] = {
    "diffusers": diffusers.tensors,
    "peft": peft.tensors,
    "kohya": kohya.tensors,
    "kohya-sgm": partial(kohya.tensors, sgm=True),
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

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
    """Read the factors of a LoRA file in any of the formats; its keys tell which.

    Tensors are views of the memory-mapped file, except each `up` that alpha changes.

    Returns
    -------
    layers
        `<component>.<module path>` -> its factors, with alpha / r folded into `up`.
    metadata
        The file's metadata, without the entries whose meaning was folded into the factors.
    format
        A key of `READERS`.

    Raises
    ------
    UserError
        The file is missing, damaged, or holds something a merge would silently get wrong.
    """
    tensors, metadata = container.read_tensors(path)
    if key := next(filter(_OTHER.search, tensors), None):
        name = next(name for mark, name in _OTHERS.items() if re.search(mark, key))
        raise UserError(f"{path}: {key} is {name}, not part of a plain LoRA; convert the file to one first")
    format = _detect(tensors, path)
    layers = READERS[format].parse(tensors, metadata, str(path))
    return layers, {key: value for key, value in metadata.items() if key not in READERS[format].FOLDED}, format


def write(path: Path | str, layers: Layers, metadata: Mapping[str, str], format: str = "diffusers") -> None:
    """Write factors with alpha = rank; equal inputs make equal bytes. Asks for one layer after the other, each once.

    A peft file gets its `adapter_config.json` in the same folder. "kohya-sgm" has SDXL's original block names.

    Raises
    ------
    UserError
        The format is unknown or has no name for a layer, or a factor holds NaN or infinity.
    """
    if format not in WRITERS:
        raise UserError(f"format {format} is unknown; choose one of {', '.join(WRITERS)}")
    known = blanks(layers)
    extra = diffusers.metadata(known) if format == "diffusers" else {}
    configuration = peft.adapter_config(known) if format == "peft" else {}
    found = {layer: WRITERS[format](layer, factors) for layer, factors in known.items()}
    layer_of = {key: layer for layer, tensors in found.items() for key in tensors}

    @lru_cache(maxsize=1)  # a layer's tensors are asked for one after the other
    def tensors_of(layer: str) -> dict[str, Tensor]:
        return WRITERS[format](layer, layers[layer])

    tensors = Lazy(
        {key: tensor for tensors in found.values() for key, tensor in tensors.items()},
        lambda key: tensors_of(layer_of[key])[key],
    )
    with ExitStack() as all_or_nothing, one_thread():
        for other in sidecars(path, format):
            write_json(all_or_nothing.enter_context(atomic(other)), configuration)
        container.write_tensors(path, tensors, {**metadata, **extra})


def sidecars(path: Path | str, format: str) -> list[Path]:
    """The files that `write` adds in the folder of `path`: peft keeps its configuration in a separate one."""
    return [Path(path).with_name(peft.CONFIGURATION)] if format == "peft" else []


def _detect(keys: Iterable[str], path: Path | str) -> str:
    for key in keys:
        for name, format in READERS.items():
            if key.startswith(format.PREFIXES):
                return name
    found = next(iter(keys), "nothing")
    raise UserError(f"{path}: no UNet LoRA as {', '.join(READERS)} name it, but {found}; give the file of a LoRA")
