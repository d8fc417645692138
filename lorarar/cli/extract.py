"""`lorarar extract`: the difference between two checkpoints as a LoRA file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorarar.cli.options import Dtype, Force, Format, Out
from lorarar.cli.resize import Energy, MaxRank, Rank, show

EXAMPLES = """Examples:

`lorarar extract tuned.safetensors base.safetensors -o lora.safetensors --rank 32`

`lorarar extract tuned/unet base/unet -o lora.safetensors --energy 0.9 --max-rank 64 --dtype fp16`"""


def run(
    tuned: Annotated[
        Path,
        typer.Argument(help="Checkpoint (.safetensors), or folder of a model or of a pipeline.", show_default=False),
    ],
    base: Annotated[Path, typer.Argument(help="The checkpoint that it was trained from.", show_default=False)],
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    max_rank: MaxRank = None,
    format: Format = None,
    dtype: Dtype = None,
    force: Force = False,
) -> None:
    """Extract a LoRA from the difference of two checkpoints, and say what error it costs and what it leaves out."""
    from lorarar.extract import extract_files
    from lorarar.resize import Size

    size = Size(rank, energy, max_rank=max_rank)
    *notes, opened = extract_files(tuned, base, out, size, format=format, dtype=dtype, force=force)
    show(out, notes, opened)
