"""`lorarar unseal`: the sealed part of the wide world, from a value that did not exist when the version was frozen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from lorarar.errors import UserError

EXAMPLES = "Example: `lorarar unseal $(curl -s https://api.drand.sh/public/N | jq -r .randomness)`, N from docs/wide.md"


def run(
    value: Annotated[
        str, typer.Argument(help="The value of the round that docs/wide.md names: 64 hexadecimal digits.")
    ],
    root: Annotated[Path, typer.Option(help="The repository.")] = Path(),
) -> None:
    """Draw the sealed test part of the wide world, to which no method can have been tuned."""
    from lorarar.pocket.world import wide

    if not re.fullmatch(r"[0-9a-f]{64}", value.lower()):
        raise UserError(f"{value}: not 64 hexadecimal digits; give the randomness of the round")
    out = root / "data/schemes/sealed"
    if out.exists():
        raise UserError(f"{out}: exists; a sealed part is drawn once: delete the folder to draw it again")
    wide.unseal(value.lower(), root, out)
    typer.echo(f"{out}: {wide.SEALED['test'][0]} subjects and {wide.SEALED['test'][1]} styles; "
               "`dvc exp run -S evaluate.scheme=sealed` evaluates them")  # fmt: skip
