"""`lorarar sweep`: a recipe merged once for each combination of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorarar.cli.options import Force
from lorarar.errors import UserError

EXAMPLES = """Examples:

`lorarar sweep recipe.yaml --over weights.oil=0.4:1.2:0.2 --over method=direct,nplora -o sweep`

`lorarar sweep recipe.yaml --over options.density=0.2,0.5 -o sweep --dry-run`"""


def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe of a merge, a YAML or JSON file.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files.", show_default=False)],
    over: Annotated[
        list[str],
        typer.Option(
            metavar="SETTING=VALUES",
            help="method, weights.NAME or options.NAME, with A,B,C or FIRST:LAST:STEP; may be given several times.",
            show_default=False,
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and write none.")] = False,
    pictures: Annotated[bool, typer.Option("--pictures", help="Draw with each file, all on one sheet.")] = False,
    base: Annotated[
        str | None, typer.Option(help="Base model for the pictures: a folder, or a name in data/NAME/base.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Words to draw; filled in for the miniature's examples.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every picture.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Number of sampling steps.")] = 25,
    force: Force = False,
) -> None:
    """Merge a recipe once for each combination of settings; a table lists the files."""
    from lorarar import sweep
    from lorarar.cli.options import literal

    if not pictures and (base or prompt):
        raise UserError("--base and --prompt: are for --pictures; add it, or leave them out")
    axes = [sweep.Axis.read(text, literal) for text in over]
    points = sweep.plan(recipe, axes)
    if dry_run:
        for point in points:
            typer.echo(point.name)
        return
    drawing = None
    if pictures:  # a mistake is told before the merges
        from lorarar import preview

        drawing = sweep.Drawing.of(points, preview.find_base(base) if base else None, prompt, seed, steps)
    table = sweep.run(points, out, force=force, progress=typer.echo)
    typer.echo(f"{table}: {len(points)} files")
    if drawing:
        typer.echo(f"{drawing.sheet(points, axes, out)}: a picture of each")
