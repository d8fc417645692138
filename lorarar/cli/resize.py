"""`lorarar resize`: a LoRA file of a lower rank."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorarar.cli.options import Dtype, Force, Format, Out

EXAMPLES = """Examples:

`lorarar resize cat.safetensors -o small.safetensors --rank 16`

`lorarar resize cat.safetensors -o small.safetensors --energy 0.95`

`lorarar resize cat.safetensors -o small.safetensors --energy 0.95 --per all --max-rank 32`"""

Rank = Annotated[int | None, typer.Option("--rank", metavar="N", help="Rank of every layer that has a larger one.")]
Energy = Annotated[
    float | None,
    typer.Option(
        "--energy", metavar="SHARE", help="Smallest ranks that keep this share of the squared norm, such as 0.95."
    ),
]
MaxRank = Annotated[int | None, typer.Option("--max-rank", metavar="N", help="Largest rank that --energy may choose.")]


def run(
    file: Annotated[Path, typer.Argument(help="LoRA file in any format.", show_default=False)],
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    per: Annotated[
        str,
        typer.Option(
            metavar="layer|all", help="Each layer keeps --energy, or all together, by one threshold of singular values."
        ),
    ] = "layer",
    max_rank: MaxRank = None,
    format: Format = None,
    dtype: Dtype = None,
    force: Force = False,
) -> None:
    """Cut a LoRA file to a lower rank, and say what error it costs: of the file and of its worst layers."""
    from lorarar.resize import Size, resize_file

    size = Size(rank, energy, per, max_rank)
    *notes, opened = resize_file(file, out, size, format=format, dtype=dtype, force=force)
    show(out, notes, opened)


def show(out: Path, notes: list[str], last: str) -> None:
    """Print notes for people to the second stream, and to the first the file with its size."""
    for note in notes:
        typer.echo(note, err=True)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB; {last}")
