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
    from lorarar.lora import base_models
    from lorarar.lora.adapter import Adapter

    adapter = Adapter.load(file)
    adapter.check(str(file))
    typer.echo(f"{file}: {adapter.format} format, {file.stat().st_size / 1e6:.1f} MB")
    typer.echo(f"base: {base_models.guess(adapter.layers)}, by the shapes of its layers")
    if adapter.layers:
        dtypes = sorted({str(factors.down.dtype).removeprefix("torch.") for factors in adapter.layers.values()})
        ranks = sorted(set(adapter.ranks.values()))
        typer.echo(f"linear layers of the UNet: {len(adapter.layers)}, rank {_range(ranks)}, {', '.join(dtypes)}")
        norms = {path: factors.norm for path, factors in adapter.layers.items()}
        total = sum(norm**2 for norm in norms.values()) ** 0.5
        largest = max(norms, key=norms.__getitem__)
        typer.echo(f"norm of all updates: {total:.4g}; largest: {norms[largest]:.4g} in {largest}")
    if adapter.unmerged:
        typer.echo(f"other layers, carried over by a merge: {len(adapter.unmerged)}, such as {min(adapter.unmerged)}")
    for key, value in sorted(adapter.metadata.items()):
        typer.echo(printable(f"{key}: {value if len(value) <= 200 else value[:200] + ' ...'}"))
    if layers:
        for path, (down, up) in adapter.layers.items():
            typer.echo(f"{path}  {up.shape[0]} x {down.shape[1]}  rank {down.shape[0]}  norm {norms[path]:.4g}")


def _range(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
