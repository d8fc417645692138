"""Checks the machine before a run of the benchmark."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from lorarar.errors import UserError

EPILOG = "Example: `lorarar doctor --base sdxl`"


def doctor(
    base: Annotated[
        str | None, typer.Option(help="pocket, pocket_light, sdxl or koala; by default that of params.yaml.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch models that are not on this machine yet.")
    ] = False,
) -> None:
    """Say what the benchmark lacks on this machine, and what each stage will cost, before anything starts."""
    if not Path("stages/shared/doctor.py").exists():
        raise UserError("stages/shared/doctor.py: no such file; run this in the root of the repository")
    # The benchmark stands on this library, and not the other way round: it is asked, not imported.
    options = [*(["--base", base] if base else []), *(["--download"] if download else [])]
    raise typer.Exit(subprocess.run([sys.executable, "-m", "stages.shared.doctor", *options], check=False).returncode)
