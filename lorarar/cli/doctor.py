"""`lorarar doctor`: what the benchmark needs on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from lorarar.cli.options import Download
from lorarar.errors import UserError

EXAMPLES = "Example: `lorarar doctor --base sdxl`"


def run(
    base: Annotated[
        str | None,
        typer.Option(
            help="Base model: pocket, pocket_light, sdxl or koala, or its folder data/NAME/base; "
            "default: that of params.yaml."
        ),
    ] = None,
    download: Download = False,
) -> None:
    """List what the benchmark lacks on this machine and what each stage will cost, before anything starts."""
    if not Path("stages/shared/doctor.py").exists():
        raise UserError("stages/shared/doctor.py: no such file; run this in the root of the repository")
    if base and Path(base).name == "base":
        base = Path(base).resolve().parent.name
    # The benchmark imports this library, and not the other way round: it runs as a process.
    options = [*(["--base", base] if base else []), *(["--download"] if download else [])]
    raise typer.Exit(subprocess.run([sys.executable, "-m", "stages.shared.doctor", *options], check=False).returncode)
