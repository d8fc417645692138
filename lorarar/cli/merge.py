"""`lorarar merge`: two LoRA files in, one out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from lorarar.cli.options import Base, Dtype, Energy, Force, Format, Out, Rank, parse_settings, reading

EXAMPLES = """Examples:

`lorarar merge cat.safetensors watercolor.safetensors -o both.safetensors`

`lorarar merge cat.safetensors watercolor.safetensors -o both.safetensors --hypernet hypernet.pth`

`lorarar merge cat.safetensors watercolor.safetensors -o both.safetensors -m ties -s density=0.3 -s space=delta`"""


def run(
    content: Annotated[Path, typer.Argument(help="LoRA of the subject.", show_default=False)],
    style: Annotated[Path, typer.Argument(help="LoRA of the style.", show_default=False)],
    out: Out,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            help="Name of a method; `lorarar methods` lists them; default: direct, or lorarar with --hypernet.",
            show_default=False,
        ),
    ] = None,
    hypernet: Annotated[
        Path | None, typer.Option(help="Trained hypernetwork (.safetensors or .pth) for method lorarar.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="NAME=VALUE", help="Option of the method; `lorarar methods` lists them."),
    ] = None,
    format: Format = None,
    dtype: Dtype = None,
    rank: Rank = None,
    energy: Energy = None,
    base: Base = None,
    force: Force = False,
) -> None:
    """Merge two LoRA files into one standard LoRA file."""
    from lorarar.api import merge_files

    begun = time.monotonic()
    options = parse_settings(setting)
    if hypernet is not None:
        options["hypernet"] = hypernet
    notes = merge_files(
        content,
        style,
        out,
        method=method,
        format=format,
        dtype=dtype,
        force=force,
        options=options,
        reading=reading(rank, energy, base),
    )
    *others, last = notes  # who opens the result
    for note in others:
        typer.echo(note, err=True)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB in {time.monotonic() - begun:.1f} s; {last}")
