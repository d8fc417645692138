"""`lorarar generate`: two LoRAs in, pictures out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lorarar.cli.options import Force

EXAMPLES = """Examples:

`lorarar generate dog8 glowing -o pictures`

`lorarar generate dog8 glowing -o pictures -m lorarar -m direct -m average`

`lorarar generate cat.safetensors oil.safetensors -o out --base sdxl -m direct --prompt "a sks cat in oil style"`"""


def run(
    content: Annotated[
        str, typer.Argument(help="LoRA of the subject: a file, or an example's name.", show_default=False)
    ],
    style: Annotated[str, typer.Argument(help="LoRA of the style: a file, or an example's name.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.", show_default=False)],
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method", "-m", help="Name of a method; may be given several times; default: lorarar.", show_default=False
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Base model: a folder, or the name of a base in data/NAME/base; default: pocket."),
    ] = None,
    hypernet: Annotated[
        Path | None, typer.Option(help="Trained hypernetwork for method lorarar; pocket's is in the examples.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help='Text prompt, such as "a sks cat in oil style"; filled in for the examples.')
    ] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Number of pictures by each method.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first picture; the others count up from it.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Number of sampling steps.")] = 25,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance scale; default: 1.5 for pocket, 7.5 for other bases.")
    ] = None,
    long_prompts: Annotated[
        Literal["cut", "chunks"],
        typer.Option(help="A prompt of more than 75 tokens: cut it with a warning, or encode it in chunks of 75."),
    ] = "cut",
    force: Force = False,
) -> None:
    """Merge two LoRAs and draw pictures with the result. Examples are the miniature's test subjects and styles."""
    from lorarar import preview

    notes = preview.show(
        content,
        style,
        out,
        methods=method or ["lorarar"],
        base=preview.find_base(base) if base else None,
        hypernet=hypernet,
        prompt=prompt,
        number=number,
        seed=seed,
        steps=steps,
        guidance=guidance,
        long_prompts=long_prompts,
        force=force,
    )
    for note in notes:
        typer.echo(note)
    typer.echo(f"{out / 'overview.webp'}: all of them")
