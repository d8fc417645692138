"""`lorarar inspect`: the contents of a LoRA file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorarar.errors import printable

EXAMPLES = "Example: `lorarar inspect cat.safetensors`"


def run(
    file: Annotated[Path, typer.Argument(help="LoRA file in any format.", show_default=False)],
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
) -> None:
    """Describe a LoRA file: format, base model, layers, ranks, norms."""
    from lorarar.contents import inspect

    found = inspect(file)
    typer.echo(f"{file}: {found.format} format, {file.stat().st_size / 1e6:.1f} MB")
    typer.echo(f"base: {found.base}, by the shapes of its layers")
    if found.layers:
        ranks = _range(found.ranks)
        typer.echo(f"linear layers of the UNet: {len(found.layers)}, rank {ranks}, {', '.join(found.dtypes)}")
        largest = max(found.layers, key=lambda path: found.layers[path].norm)
        typer.echo(f"norm of all updates: {found.norm:.4g}; largest: {found.layers[largest].norm:.4g} in {largest}")
    if found.others:
        typer.echo(f"other layers: {len(found.others)}, such as {found.others[0]}")
    for key, value in found.metadata.items():
        typer.echo(printable(f"{key}: {value if len(value) <= 200 else value[:200] + ' ...'}"))
    if layers:
        for path, layer in found.layers.items():
            typer.echo(f"{path}  {layer.shape[0]} x {layer.shape[1]}  rank {layer.rank}  norm {layer.norm:.4g}")


def _range(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
