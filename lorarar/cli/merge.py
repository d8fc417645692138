"""`lorarar merge`: LoRA files in, one out."""

from __future__ import annotations

import time
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from lorarar.cli.options import Dtype, Force, Format, Out, parse_settings
from lorarar.errors import UserError

EXAMPLES = """Examples:

`lorarar merge cat.safetensors watercolor.safetensors -o both.safetensors`

`lorarar merge cat.safetensors watercolor.safetensors -o both.safetensors --hypernet hypernet.pth`

`lorarar merge cat.safetensors watercolor.safetensors -o both.safetensors -m ties -s density=0.3 -s space=delta`

`lorarar merge cat.safetensors:1.0 watercolor.safetensors:0.8 hat.safetensors:-0.3 -o all.safetensors`

`lorarar merge recipe.yaml -o both.safetensors`"""


def run(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE[:WEIGHT]...",
            help="LoRAs: of the subject, then of the style; or any number, each with a weight; or one recipe.",
            show_default=False,
        ),
    ],
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
    force: Force = False,
) -> None:
    """Merge LoRA files into one standard LoRA file."""
    from lorarar.api import merge_files, merge_recipe
    from lorarar.recipe import SUFFIXES, load

    begun = time.monotonic()
    options = parse_settings(setting)
    if hypernet is not None:
        options["hypernet"] = hypernet
    recipes = [file for file in files if file.endswith(SUFFIXES)]
    if recipes:
        if len(files) > 1 or method or options:
            raise UserError(f"{recipes[0]}: a recipe stands alone, with its files, method and options; put them there")
        recipe = load(recipes[0])
        recipe = replace(recipe, format=format or recipe.format, dtype=dtype or recipe.dtype)
        notes = merge_recipe(recipe, out, force=force)
    else:
        paths, weights = zip(*map(split_weight, files), strict=True)
        if len(files) == 1 and weights == (None,):
            raise UserError(f"{files[0]}: the only file; give another, or a weight, as in {files[0]}:0.8, or a recipe")
        notes = merge_files(
            *paths, out, weights=weights, method=method, format=format, dtype=dtype, force=force, options=options
        )
    *others, last = notes  # who opens the result
    for note in others:
        typer.echo(note, err=True)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB in {time.monotonic() - begun:.1f} s; {last}")


def split_weight(text: str) -> tuple[Path, float | None]:
    """The file and the weight of `FILE:WEIGHT`; None is no weight, as in the name of a file that exists.

    Raises
    ------
    UserError
        The weight is infinite or no number.
    """
    name, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), None
    try:
        weight = float(number)
    except ValueError:
        return Path(text), None
    if not isfinite(weight):
        raise UserError(f"{text}: give a finite weight, such as {name}:0.8")
    return Path(name), weight
