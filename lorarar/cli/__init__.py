"""The command `lorarar`: one file a command; `lorarar study` is in `lorarar.study.cli`."""

from __future__ import annotations

import sys

import typer

from lorarar.cli import convert, doctor, generate, inspect, merge, methods, score
from lorarar.errors import UserError
from lorarar.study.cli import app as study

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Merge a content and a style LoRA of one base model into one file, and score the pictures it makes.",
)
app.add_typer(study, name="study")
app.command(epilog=merge.EPILOG)(merge.merge)
app.command(epilog=generate.EPILOG)(generate.generate)
app.command(epilog=inspect.EPILOG)(inspect.inspect)
app.command(epilog=doctor.EPILOG)(doctor.doctor)
app.command()(methods.methods)
app.command(epilog=convert.EPILOG)(convert.convert)
app.command(epilog=score.EPILOG)(score.score)


def main() -> None:
    """Run the command; a user's mistake ends with one line and exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
