"""`lorarar doctor`: the installation, and in a clone of the repository what the benchmark needs."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from lorarar.cli.extras import ADDS, missing
from lorarar.cli.options import Download
from lorarar.errors import UserError
from lorarar.version import __version__

EXAMPLES = """Examples:

`lorarar doctor`

`lorarar doctor --base sdxl`"""


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
    """Check the installation, and in a clone of the repository what the benchmark lacks and what it will cost."""
    clone = Path("stages/shared/doctor.py").exists()
    if not clone and (base or download):
        raise UserError("stages/shared/doctor.py: no such file; --base and --download need a clone of the repository")
    installation()
    if not clone:
        return
    if base and Path(base).name == "base":
        base = Path(base).resolve().parent.name
    # The benchmark imports this library, and not the other way round: it runs as a process.
    options = [*(["--base", base] if base else []), *(["--download"] if download else [])]
    raise typer.Exit(subprocess.run([sys.executable, "-m", "stages.shared.doctor", *options], check=False).returncode)


def installation() -> None:
    """Print versions, the device, and what each extra would add."""
    from lorarar.device import best_device

    python = f"Python {platform.python_version()}"
    typer.echo(f"lorarar {__version__}, {python}, torch {version('torch')} on {best_device()}: merges LoRA files")
    for extra, packages in missing().items():
        state = f"not installed; pip install 'lorarar[{extra}]'" if packages else "installed"
        typer.echo(f"{extra:10} {ADDS[extra]}: {state}")
