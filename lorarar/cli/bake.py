"""`lorarar bake`: LoRAs added to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorarar.cli.options import Force

EXAMPLES = """Examples:

`lorarar bake base.safetensors cat.safetensors -o cat-model.safetensors`

`lorarar bake base.safetensors cat.safetensors:0.8 watercolor.safetensors:0.6 -o model.safetensors --dtype bf16`

`lorarar bake base/unet cat.safetensors -o cat-unet`"""


def run(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="Checkpoint (.safetensors), or folder of a model or of a pipeline.", show_default=False),
    ],
    loras: Annotated[
        list[str],
        typer.Argument(metavar="LORA[:WEIGHT]...", help="LoRA files in any format, of weight 1.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write, or folder if CHECKPOINT is one.", show_default=False)
    ],
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", "-d", metavar="DTYPE", help="fp32, fp16, bf16 or fp8 (e4m3); default: each tensor's own."
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Add LoRAs to a checkpoint, and say how much of their updates is lost in rounding."""
    from lorarar.bake import bake_files

    *notes, last = bake_files(checkpoint, loras, out, dtype=dtype, force=force)
    for note in notes:
        typer.echo(note, err=True)
    typer.echo(f"{out}: {last}")
