"""`lorarar bases`: the base models whose LoRAs are read, merged and written."""

from __future__ import annotations

import typer

EXAMPLES = "Example: `lorarar bases`"


def run() -> None:
    """List the base models: class in diffusers, number of linear layers, formats in and out."""
    from lorarar.lora.bases import bases

    rows = [("base", "class in diffusers", "linear layers", "formats in and out")]
    rows += [(base.name, base.model, str(len(base.shapes)), ", ".join(base.formats)) for base in bases()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
