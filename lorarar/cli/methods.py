"""`lorarar methods`: the table of merging methods."""

from __future__ import annotations

from typing import Any

import typer

EXAMPLES = "Example: `lorarar methods`"


def run() -> None:
    """List the merging methods with their options."""
    from lorarar.merging.registry import methods

    for method in methods().values():
        needs = {"": "", "hypernet": "needs --hypernet", "base+images": "needs a base model and images: `dvc repro`"}
        exact = "one exact LoRA" if method.exact else "approximated"
        takes = "many files" if method.many else "two files"
        typer.echo(
            f"{method.name:16}{method.title:22}{method.paper:18}{exact:18}{takes:12}{needs[method.needs]}".rstrip()
        )
        if method.options:
            options = ", ".join(f"{name}={_text(default)}" for name, default in method.options.items())
            typer.echo(f"{'':16}options: {options}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
