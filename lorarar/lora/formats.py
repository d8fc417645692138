"""LoRA files on disk: safetensors in, low-rank factors out, and back.

A UNet's format is a module with `PREFIXES`, which its keys begin with, `FOLDED`, metadata keys that reading applies
(alpha) and drops, `parse(tensors, metadata, source)` and `tensors(layer, factors)`. Files of transformers are read and
written by `lorarar.lora.transformer`. A layer's name is its component and the module path in it: `unet.<path>`,
`transformer.<path>`, `text_encoder.<path>`, `text_encoder_2.<path>` or `text_encoder_3.<path>`.
"""

from __future__ import annotations

import os
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
from lorarar.lora import base_models, cloneofsimo, container, diffusers, keys, kohya, lycoris, peft, transformer
from lorarar.lora.bases import named
from lorarar.lora.factors import Factors, Layers
from lorarar.lora.lazy import Lazy, blanks
from lorarar.lora.lycoris import Reading
from lorarar.parallel import one_thread

READERS: dict[str, ModuleType] = {"diffusers": diffusers, "peft": peft, "kohya": kohya}
WRITERS: dict[str, Callable[[str, Factors], dict[str, Tensor]]] = {
    "diffusers": diffusers.tensors,
    "peft": peft.tensors,
    "kohya": kohya.tensors,
    "kohya-sgm": partial(kohya.tensors, sgm=True),
}
FORMATS = (*WRITERS, *(format for format in transformer.FORMATS if format not in WRITERS))
"""Names of the formats of files; the last ones are for transformers alone."""
_LAYER = re.compile(
    r"unet\.(?:(?:down|up)_blocks\.|mid_block\.|conv_in|conv_out|(?:time|add|class)_embedding|encoder_hid_proj)"
    r"|text_encoder(?:_2)?\.(?:text_model\.|text_projection)"
)
FOLDED = frozenset().union(*(reader.FOLDED for reader in READERS.values()))
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def read(path: Path | str, reading: Reading | None = None) -> tuple[Layers, dict[str, str], str, str]:
    """Read the factors of a LoRA file in any of the formats; its keys tell which.

    Tensors are views of the memory-mapped file, except each `up` that alpha changes.

    Parameters
    ----------
    reading
        How updates of other kinds become plain factors.

    Returns
    -------
    layers
        `<component>.<module path>` -> its factors, with alpha / r folded into `up`.
    metadata
        The file's metadata, without the entries whose meaning was folded into the factors.
    format
        One of `FORMATS`.
    note
        The kinds of updates that became plain factors, and the error of it; "" of a plain LoRA.

    Raises
    ------
    UserError
        The file is missing, damaged, or holds something a merge would silently get wrong.
    """
    tensors, metadata = container.read_tensors(path)
    plain, updates = lycoris.take(tensors, str(path))
    names = [*plain, *lycoris.plain_keys(updates)]
    of_transformer = transformer.known(names)
    keys.check(names, str(path), of_transformer)
    parse = partial(_parse, metadata=metadata, path=path, of_transformer=bool(of_transformer))
    if not updates:
        return *parse(tensors), ""
    expansion = lycoris.Expansion(plain, updates, lambda found: parse(found)[0], reading or Reading(), str(path))
    layers, kept, format = parse(expansion.tensors)
    layers, told, note = expansion.finish(layers)
    return layers, lycoris.without_kind(kept) | told, format, note


def _parse(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path | str, of_transformer: bool
) -> tuple[Layers, dict[str, str], str]:
    """Layers, metadata and format, as `read` gives them, of the tensors of plain LoRAs."""
    translate = cloneofsimo.translate if cloneofsimo.known(tensors) else keys.translate
    tensors = translate(tensors, str(path))
    if of_transformer:
        layers, format = transformer.read(tensors, metadata, str(path))
        return layers, {key: value for key, value in metadata.items() if key not in FOLDED}, format
    format = _detect(tensors, path)
    layers = READERS[format].parse(tensors, metadata, str(path))
    for layer in layers:
        if not _LAYER.match(layer):
            raise UserError(f"{path}: layer {layer} is of no UNet or text encoder known here; give another file")
    kept = {key: value for key, value in metadata.items() if key not in READERS[format].FOLDED}
    return layers, kept, "kohya-sgm" if format == "kohya" and any(map(kohya.original, tensors)) else format


FILES = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.bin",
)
"""Names of the file in a folder that diffusers or peft wrote."""


def locate(path: Path | str) -> Path:
    """The file itself: in a folder of diffusers or peft, or in the local cache of the hub if `path` is a name there.

    Raises
    ------
    UserError
        The folder has no LoRA, or more than one.
    """
    path = Path(path)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        home = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface"))
        cache = Path(
            os.environ.get("HF_HUB_CACHE", home / "hub"), f"models--{str(path).replace('/', '--')}", "snapshots"
        )
        found = sorted(cache.glob("*/"), key=lambda folder: folder.stat().st_mtime)
        path = found[-1] if found else path
    if not path.is_dir():
        return path
    known = [path / name for name in FILES if (path / name).is_file()]
    found = known[:1] or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{path}: a folder with no single LoRA in it (found {names}); give the file")
    return found[0]


def write(path: Path | str, layers: Layers, metadata: Mapping[str, str], format: str = "diffusers") -> None:
    """Write factors with alpha = rank; equal inputs make equal bytes. Asks for one layer after the other, each once.

    A peft file gets its `adapter_config.json` in the same folder. "kohya-sgm" has SDXL's original block names.

    Raises
    ------
    UserError
        The format is unknown or has no name for a layer, or a factor holds NaN or infinity.
    """
    if format not in FORMATS:
        raise UserError(f"format {format} is unknown; choose one of {', '.join(FORMATS)}")
    write_layer = WRITERS.get(format, transformer.refuse)
    if any(layer.startswith("transformer.") for layer in layers):
        if format in transformer.FORMATS:
            layers, write_layer = transformer.renamed(layers, format, metadata)
        elif format == "kohya-sgm":
            raise UserError("format kohya-sgm has no names for the layers of a transformer; choose kohya")
    known = blanks(layers)
    if format == "kohya" and _one_encoder(known):
        write_layer = partial(kohya.tensors, one_encoder=True)
    extra = diffusers.metadata(known) if format == "diffusers" else {}
    configuration = peft.adapter_config(known) if format == "peft" else {}
    found = {layer: write_layer(layer, factors) for layer, factors in known.items()}
    layer_of = {key: layer for layer, tensors in found.items() for key in tensors}

    @lru_cache(maxsize=1)  # a layer's tensors are asked for one after the other
    def tensors_of(layer: str) -> dict[str, Tensor]:
        return write_layer(layer, layers[layer])

    tensors = Lazy(
        {key: tensor for tensors in found.values() for key, tensor in tensors.items()},
        lambda key: tensors_of(layer_of[key])[key],
    )
    with ExitStack() as all_or_nothing, one_thread():
        for other in sidecars(path, format):
            write_json(all_or_nothing.enter_context(atomic(other)), configuration)
        container.write_tensors(path, tensors, {**metadata, **extra})


def opened_by(format: str, base: str | None) -> str:
    """The programs that open a file of this format, as docs/compatibility.md has them.

    Parameters
    ----------
    base : a key of `describe.BASES`; of other bases, the programs do not know.
    """
    found = named(base)
    if found and found.component == "transformer":
        programs = [PROGRAMS[program] for program, formats in found.programs.items() if format in formats]
        return " and ".join(filter(None, [", ".join(programs[:-1]), *programs[-1:]])) or format
    if format in ("diffusers", "peft") or base is None:
        return {"kohya": "diffusers", "kohya-sgm": "diffusers"}.get(format, format)
    a1111 = "" if (format, base) == ("kohya", "SDXL") else "A1111, "  # it does not know one of SDXL's upsamplers so
    return f"ComfyUI, {a1111}Forge, sd-scripts, InvokeAI and diffusers"


def format_for(program: str, base: str | None) -> str:
    """The format that a program reads: kohya's, of SDXL with the original block names, as its trainer writes them."""
    programs = {"diffusers": "diffusers", "peft": "peft"}
    found = named(base)
    if found and found.component == "transformer":
        programs |= {name: formats[0] for name, formats in found.programs.items()}
    else:
        programs |= dict.fromkeys(
            ("comfyui", "a1111", "forge", "sd-scripts", "invokeai"), "kohya-sgm" if base == "SDXL" else "kohya"
        )
    if program.lower() not in programs:
        known = f"reads no LoRA of {base}" if program.lower() in PROGRAMS else "unknown"
        raise UserError(f"--for {program}: {known}; choose one of {', '.join(sorted(programs))}")
    return programs[program.lower()]


PROGRAMS = {
    "comfyui": "ComfyUI",
    "a1111": "A1111",
    "forge": "Forge",
    "sd-scripts": "sd-scripts",
    "invokeai": "InvokeAI",
    "diffusers": "diffusers",
    "peft": "peft",
    "musubi": "musubi-tuner",
    "onetrainer": "OneTrainer",
    "ai-toolkit": "ai-toolkit",
    "xlabs": "XLabs' x-flux",
}
"""Programs by the name that `--for` has for them."""


def sidecars(path: Path | str, format: str) -> list[Path]:
    """The files that `write` adds in the folder of `path`: peft keeps its configuration in a separate one."""
    return [Path(path).with_name(peft.CONFIGURATION)] if format == "peft" else []


def _one_encoder(layers: Layers) -> bool:
    """True if the layers are of a base with one text encoder: Stable Diffusion 1 or 2."""
    unet = {
        name.removeprefix("unet."): factors
        for name, factors in layers.items()
        if name.startswith("unet.") and factors.down.ndim == 2
    }
    second = any(name.startswith("text_encoder_2.") for name in layers)
    return not second and base_models.guess(unet).startswith("Stable Diffusion")


def _detect(keys: Iterable[str], path: Path | str) -> str:
    for key in keys:
        for name, format in READERS.items():
            if key.startswith(format.PREFIXES):
                return name
    found = next(iter(keys), "nothing")
    raise UserError(f"{path}: no UNet LoRA as {', '.join(READERS)} name it, but {found}; give the file of a LoRA")
