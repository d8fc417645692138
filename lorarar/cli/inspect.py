"""`lorarar inspect`: the contents of a LoRA file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorarar.cli.options import Base, Energy, Rank, notes_on, reading
from lorarar.errors import printable

if TYPE_CHECKING:
    from lorarar.contents import Contents

EXAMPLES = """Examples:

`lorarar inspect cat.safetensors`

`lorarar inspect cat.safetensors watercolor.safetensors`"""


def run(
    file: Annotated[Path, typer.Argument(help="LoRA file in any format.", show_default=False)],
    other: Annotated[
        Path | None, typer.Argument(help="A second one: what both have in common, before they are merged.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
    rank: Rank = None,
    energy: Energy = None,
    base: Base = None,
) -> None:
    """Describe a LoRA file: format, base model, layers, ranks, norms; or compare two before a merge."""
    from lorarar.contents import compare, contents
    from lorarar.lora import base_models, formats
    from lorarar.lora.adapter import Adapter

    files = [formats.locate(path) for path in (file, other) if path]
    given = reading(rank, energy, base)
    adapters = [Adapter.load(path, given) for path in files]
    for path, adapter in zip(files, adapters, strict=True):
        adapter.check(str(path))
        _show(path, contents(adapter), layers)
        for note in notes_on([adapter], given):
            typer.echo(note)
    if len(adapters) == 1:
        return
    base_models.same(*(adapter.layers for adapter in adapters), names=[str(path) for path in files])
    found = compare(*adapters)
    typer.echo(f"both: {found.shared} layers; only the first: {found.only_first}, only the second: {found.only_second}")
    typer.echo(f"norm of the first over the second's: {found.norm_ratio:.3g}; cosine of updates: {found.cosine:.3f}")
    typer.echo(f"overlap of row spaces: {found.overlap:.3f}, by chance {found.by_chance:.3f}")
    for warning in found.warnings:
        typer.echo(f"warning: {warning}")


def _show(file: Path, found: Contents, layers: bool) -> None:
    from lorarar.describe import triggers

    typer.echo(f"{file}: {found.format} format, {file.stat().st_size / 1e6:.1f} MB")
    typer.echo(f"base: {found.base}, by its metadata or the shapes of its layers")
    if found.layers:
        ranks = _range(found.ranks)
        model = "UNet" if found.component == "unet" else found.component
        typer.echo(f"linear layers of the {model}: {len(found.layers)}, rank {ranks}, {', '.join(found.dtypes)}")
        largest = max(found.layers, key=lambda path: found.layers[path].norm)
        typer.echo(f"norm of all updates: {found.norm:.4g}; largest: {found.layers[largest].norm:.4g} in {largest}")
    if found.others:
        typer.echo(f"other layers: {len(found.others)}, such as {found.others[0]}")
    for phrase in triggers(found.metadata):
        typer.echo(printable(f"trigger words: {phrase}"))
    for key, value in found.metadata.items():
        typer.echo(printable(f"{key}: {value if len(value) <= 200 else value[:200] + ' ...'}"))
    if layers:
        for path, layer in found.layers.items():
            typer.echo(f"{path}  {layer.shape[0]} x {layer.shape[1]}  rank {layer.rank}  norm {layer.norm:.4g}")


def _range(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
