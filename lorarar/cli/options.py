"""Options that several commands share."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorarar.errors import UserError

if TYPE_CHECKING:
    from lorarar.lora.adapter import Adapter
    from lorarar.lora.lycoris import Reading


def _format(name: str | None) -> str | None:
    from lorarar.lora.formats import FORMATS

    return name and _one_of("--format", name, FORMATS)


def _dtype(name: str | None) -> str | None:
    from lorarar.lora.formats import DTYPES

    return name and _one_of("--dtype", name, DTYPES)


def _one_of(option: str, name: str, known: Iterable[str]) -> str:
    if name not in known:
        raise UserError(f"{option} {name}: choose one of {', '.join(known)}")
    return name


Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.", show_default=False)]
# The tables of formats and precisions import torch, which would make --help slow: names are checked when one is given.
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        "-f",
        help="Output format: diffusers, peft, kohya, kohya-sgm (SDXL's original block names), or of transformers "
        "comfyui, onetrainer or xlabs; default: the content file's.",
        callback=_format,
        metavar="FORMAT",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        "-d",
        help="Output precision: fp32, fp16 or bf16; default: that of the content file.",
        callback=_dtype,
        metavar="DTYPE",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
Download = Annotated[bool, typer.Option("--download", help="Download models that are not on this machine yet.")]
Rank = Annotated[
    int | None,
    typer.Option(
        "--rank",
        min=1,
        help="Largest rank of layers that are no plain LoRA (LoHa, LoKr, DoRA ...); default: whole up to 128.",
    ),
]
Energy = Annotated[
    float | None,
    typer.Option(
        "--energy",
        help="Share of |dW|^2 to keep of layers that are no plain LoRA; default: 1 up to rank 128, 0.999 above.",
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="Base model, whose weights DoRA, GLoRA and (IA)^3 change: a checkpoint, a folder of diffusers, or a name.",
    ),
]


def reading(rank: int | None, energy: float | None, base: str | None) -> Reading:
    """How updates of other kinds than LoRA are read; the weights of the base model are found, and not read yet."""
    from lorarar import shipped
    from lorarar.lora.checkpoint_file import Checkpoint
    from lorarar.lora.lycoris import Reading

    return Reading(rank, energy, Checkpoint.open(shipped.base(base)) if base else None)


def notes_on(adapters: Iterable[Adapter], given: Reading) -> list[str]:
    """A note for the user on updates of other kinds than LoRA."""
    from lorarar.lora.lycoris import unused

    return [adapter.note for adapter in adapters if adapter.note] or unused(given)


def parse_settings(texts: Iterable[str] | None) -> dict[str, Any]:
    """Reads the values of `--set NAME=VALUE`: Python literals, and strings otherwise.

    Raises
    ------
    UserError : a text is not of this form.
    """
    return dict(map(_setting, texts or ()))


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UserError(f"--set {text}: write it as NAME=VALUE, such as density=0.5")
    return name, literal(value)


def literal(text: str) -> Any:
    """The Python literal that a text is, or else the text."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text
