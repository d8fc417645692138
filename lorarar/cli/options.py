"""Options that several commands share."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from lorarar.errors import UserError


def _format(name: str | None) -> str | None:
    from lorarar.lora.formats import WRITERS

    return name and _one_of("--format", name, WRITERS)


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
        help="Output format: diffusers, peft, kohya or kohya-sgm (original block names); default: the content file's.",
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
