"""Options that several commands have."""

from __future__ import annotations

from ast import literal_eval
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lorarar.errors import UserError


class Format(StrEnum):
    """Names of the tensors in a LoRA file."""

    diffusers = "diffusers"
    peft = "peft"
    kohya = "kohya"
    kohya_sgm = "kohya-sgm"


class Dtype(StrEnum):
    """Precision of the numbers in a LoRA file."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.", show_default=False)]
Layout = Annotated[Format, typer.Option("--format", "-f", help="Output format.")]
Numbers = Annotated[
    Dtype | None, typer.Option("--dtype", "-d", help="Output precision; default: that of the content file.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]


def setting_of(text: str) -> tuple[str, Any]:
    """Name and value of `NAME=VALUE`; the value is a Python literal, or else text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UserError(f"--set {text}: write it as NAME=VALUE, such as density=0.5")
    try:
        return name, literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
