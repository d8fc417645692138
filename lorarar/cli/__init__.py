"""The command `lorarar`; each of its commands is a module of this package."""

from __future__ import annotations

import sys

import typer

from lorarar.cli import app as page
from lorarar.cli import (
    bake,
    bases,
    convert,
    doctor,
    extract,
    generate,
    inspect,
    merge,
    methods,
    resize,
    score,
    sweep,
    unseal,
)
from lorarar.cli.extras import extra_of
from lorarar.errors import UserError
from lorarar.study.cli import app as study

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Merge a content and a style LoRA of one base model into one file, and score the pictures it makes.

Merge: `lorarar merge cat.safetensors watercolor.safetensors -o both.safetensors`

Look into a file: `lorarar inspect both.safetensors`

Draw with the miniature: `lorarar generate dog8 glowing -o pictures`
""",
)
COMMANDS = (
    merge,
    sweep,
    generate,
    page,
    inspect,
    convert,
    resize,
    extract,
    bake,
    bases,
    methods,
    score,
    doctor,
    unseal,
)
for module in COMMANDS:
    app.command(module.__name__.rpartition(".")[2], epilog=module.EXAMPLES)(module.run)
app.add_typer(study, name="study")


def main() -> None:
    """Runs the command; a user's mistake or a library that is not installed ends with one line and exit status 2."""
    try:
        app()
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "", next(iter(sys.argv[1:]), ""))
        if extra is None:
            raise
        print(f"error: {error.name} is not installed: pip install 'lorarar[{extra}]'", file=sys.stderr)
        raise SystemExit(2) from None
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
