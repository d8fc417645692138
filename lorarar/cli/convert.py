"""`lorarar convert`: a LoRA file in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorarar.cli.options import Base, Dtype, Energy, Force, Format, Out, Rank, notes_on, reading

EXAMPLES = """Examples:

`lorarar convert kohya.safetensors -o diffusers.safetensors`

`lorarar convert diffusers.safetensors -o comfyui.safetensors --for comfyui`

`lorarar convert lokr.safetensors -o lora.safetensors --rank 64`"""


def run(
    file: Annotated[Path, typer.Argument(help="LoRA file in any format.", show_default=False)],
    out: Out,
    format: Format = None,
    program: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="PROGRAM",
            help="The format that a program reads: comfyui, a1111, forge, sd-scripts, invokeai, diffusers, peft, "
            "musubi, onetrainer, ai-toolkit or xlabs.",
        ),
    ] = None,
    dtype: Dtype = None,
    rank: Rank = None,
    energy: Energy = None,
    base: Base = None,
    force: Force = False,
) -> None:
    """Write a LoRA file in another format, diffusers' by default; alpha is folded into the factors."""
    from lorarar import describe
    from lorarar.errors import UserError
    from lorarar.files import refuse_existing
    from lorarar.lora import base_models, formats
    from lorarar.lora.adapter import Adapter

    if format and program:
        raise UserError("--format and --for: give one of them")
    refuse_existing(out, force, file)
    file = formats.locate(file)
    given = reading(rank, energy, base)
    adapter = Adapter.load(file, given)
    known = describe.claimed(adapter.metadata) or next(
        (name for name in base_models.possible(adapter.layers) if name in describe.BASES), None
    )
    format = formats.format_for(program, known) if program else format or "diffusers"
    for path in formats.sidecars(out, format):
        refuse_existing(path, force, file, *formats.sidecars(file, adapter.format))
    adapter.check(str(file))
    first = next(iter({**adapter.layers, **adapter.others}.values()))
    adapter.metadata = describe.converted(adapter.metadata, known, max(adapter.all_ranks))
    adapter.save(out, format=format, dtype=formats.DTYPES[dtype] if dtype else first.down.dtype)
    for phrase in describe.triggers(adapter.metadata):
        typer.echo(f"trigger words: {phrase}", err=True)
    for note in notes_on([adapter], given):
        typer.echo(note, err=True)
    number = len(adapter.layers) + len(adapter.others)
    typer.echo(f"{out}: {number} layers in {format} format; opens in {formats.opened_by(format, known)}")
