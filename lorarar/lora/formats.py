"""LoRA files on disk: safetensors in, low-rank factors out, and back.

A format is a module with `PREFIXES`, how its keys begin, `FOLDED`, the metadata keys that reading applies (alpha) and
drops, `parse(tensors, metadata, source)` and `keys(layers)`. All know a layer by its component and the module path in
it: `unet.<path>`, `text_encoder.<path>` or `text_encoder_2.<path>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType

from torch import Tensor

from lorarar.errors import UserError
from lorarar.files import atomic, write_json
from lorarar.lora import container, diffusers, kohya, peft
from lorarar.lora.factors import Layers

READERS: dict[str, ModuleType] = {"diffusers": diffusers, "peft": peft, "kohya": kohya}
WRITERS: dict[str, Callable[[Layers], dict[str, Tensor]]] = {
    "diffusers": diffusers.keys,
    "peft": peft.keys,
    "kohya": kohya.keys,
    "kohya-sgm": partial(kohya.keys, sgm=True),
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
    tensors, metadata = container.read_tensors(path)
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

    A peft file gets an `adapter_config.json` in its folder. "kohya-sgm" is kohya with SDXL's original block names.

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
        for other in sidecars(path, format):
            write_json(all_or_nothing.enter_context(atomic(other)), configuration)
        container.write_tensors(path, keys(layers), {**metadata, **extra}, computed())


def sidecars(path: Path | str, format: str) -> list[Path]:
    """The further files that `write` makes for `path`: peft keeps its configuration in one."""
    return [Path(path).with_name(peft.CONFIGURATION)] if format == "peft" else []


def _detect(keys: Iterable[str], path: Path | str) -> str:
    for key in keys:
        for name, format in READERS.items():
            if key.startswith(format.PREFIXES):
                return name
    found = next(iter(keys), "nothing")
    raise UserError(f"{path}: no UNet LoRA as {', '.join(READERS)} name it, but {found}; give the file of a LoRA")
