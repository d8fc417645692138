"""Merges two LoRAs and samples pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorarar.cli.options import Force

EPILOG = """Examples:

`lorarar generate dog8 glowing -o pictures`

`lorarar generate dog8 glowing -o pictures -m lorarar -m direct -m average`

`lorarar generate cat.safetensors oil.safetensors -o out --base sdxl -m direct --prompt "a sks cat in oil style"`"""


def generate(
    content: Annotated[
        str, typer.Argument(help="LoRA of the subject: a file, or an example's name.", show_default=False)
    ],
    style: Annotated[str, typer.Argument(help="LoRA of the style, likewise.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.", show_default=False)],
    method: Annotated[
        list[str] | None,
        typer.Option("--method", "-m", help="Of `lorarar methods`, by default lorarar; may be given several times."),
    ] = None,
    base: Annotated[Path | None, typer.Option(help="Folder of the base model; the miniature by default.")] = None,
    hypernet: Annotated[Path | None, typer.Option(help="For method lorarar with another base.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text prompt, such as 'a sks cat in oil style'; filled in for the examples.")
    ] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Pictures by each method.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the first picture.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Of sampling.")] = 25,
    guidance: Annotated[
        float | None, typer.Option(help="Weight of the prompt; by default 1.5 for the miniature, 7.5 for others.")
    ] = None,
    force: Force = False,
) -> None:
    """Merge two LoRAs and look at the pictures at once. Examples are the miniature's test subjects and styles."""
    from lorarar import preview

    notes = preview.show(
        content,
        style,
        out,
        methods=method or ["lorarar"],
        base=base or preview.POCKET,
        hypernet=hypernet,
        prompt=prompt,
        number=number,
        seed=seed,
        steps=steps,
        guidance=guidance,
        force=force,
    )
    for note in notes:
        typer.echo(note)
    typer.echo(f"{out / 'overview.webp'}: all of them")
