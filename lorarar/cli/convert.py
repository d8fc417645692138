"""`lorarar convert`: a LoRA file in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorarar.cli.options import Dtype, Force, Format, Out

EXAMPLES = "Example: `lorarar convert kohya.safetensors -o diffusers.safetensors`"


def run(
    file: Annotated[Path, typer.Argument(help="LoRA file in any format.", show_default=False)],
    out: Out,
    format: Format = "diffusers",
    dtype: Dtype = None,
    force: Force = False,
) -> None:
    """Write a LoRA file in another format; alpha is folded into the factors."""
    from lorarar.files import refuse_existing
    from lorarar.lora.adapter import Adapter
    from lorarar.lora.formats import DTYPES, sidecars

    for path in (out, *sidecars(out, format)):
        refuse_existing(path, force, file)
    adapter = Adapter.load(file)
    for path in sidecars(out, format):
        refuse_existing(path, True, *sidecars(file, adapter.format))
    adapter.check(str(file))
    adapter.save(out, format=format, dtype=DTYPES[dtype] if dtype else None)
    typer.echo(f"{out}: {len(adapter.layers) + len(adapter.others)} layers in {format} format")
