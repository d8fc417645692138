"""Merges two LoRA files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from lorarar.cli.options import Force, Format, Layout, Numbers, Out, setting_of

EPILOG = """Examples:

`lorarar merge cat.safetensors watercolor.safetensors -o both.safetensors --method direct`

`lorarar merge cat.safetensors watercolor.safetensors -o both.safetensors --hypernet hypernet.pth`

`lorarar merge cat.safetensors watercolor.safetensors -o both.safetensors -m ties -s density=0.3 -s space=delta`"""


def merge(
    content: Annotated[Path, typer.Argument(help="LoRA of the subject.", show_default=False)],
    style: Annotated[Path, typer.Argument(help="LoRA of the style.", show_default=False)],
    out: Out,
    method: Annotated[str, typer.Option("--method", "-m", help="One of `lorarar methods`.")] = "lorarar",
    hypernet: Annotated[
        Path | None, typer.Option(help="Trained hypernetwork (.safetensors or .pth) for method lorarar.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="NAME=VALUE", help="An option of the method, see `lorarar methods`."),
    ] = None,
    format: Layout = Format.diffusers,
    dtype: Numbers = None,
    force: Force = False,
) -> None:
    """Merge two LoRA files into one standard LoRA file."""
    from lorarar.merge.api import merge_files

    begun = time.monotonic()
    options = dict(setting_of(text) for text in setting or [])
    if hypernet is not None:
        options["hypernet"] = hypernet
    notes = merge_files(
        content,
        style,
        out,
        method=method,
        format=format.value,
        dtype=dtype and dtype.value,
        force=force,
        options=options,
    )
    for note in notes:
        typer.echo(note, err=True)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB in {time.monotonic() - begun:.1f} s")
