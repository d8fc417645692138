"""`lorarar app`: a page in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """Examples:

`lorarar app`

`lorarar app --base sdxl --hypernet hypernet.safetensors --port 9000`"""


def run(
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine need a proxy with TLS and passwords.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Another name by which browsers ask for this machine; may be given several times."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Base model that draws: a folder, or the name of a base in data/NAME/base; default: pocket."),
    ] = None,
    hypernet: Annotated[
        Path | None, typer.Option(help="Trained hypernetwork for method lorarar; pocket's is in the examples.")
    ] = None,
    largest: Annotated[int, typer.Option(min=1, help="Megabytes of an uploaded file at most.")] = 2000,
    keep: Annotated[
        float, typer.Option(min=0.01, help="Minutes without a request after which a visitor's files are removed.")
    ] = 60,
) -> None:
    """Serve a page that merges two LoRA files, and draws pictures with the result where a base model is at hand."""
    from lorarar import shipped
    from lorarar.app.drawing import at_hand
    from lorarar.app.server import serve
    from lorarar.errors import UserError
    from lorarar.merging.hypernet import HyperNetwork

    folder = None
    if base:
        from lorarar.preview import find_base

        folder = find_base(base)
    artist = at_hand(folder)
    if hypernet is not None:
        HyperNetwork.load(hypernet)  # a wrong file is refused now and not at the first merge
    elif folder is None and shipped.examples():
        hypernet = next(iter(shipped.examples().values())).with_name("hypernet.safetensors")
    if folder and not folder.is_dir():
        raise UserError(f"--base {base}: no such folder; give the folder of a base model")
    if artist is None:
        typer.echo("no pictures: install 'lorarar[app,pocket]', or give --base", err=True)
    if host not in ("127.0.0.1", "localhost", "::1"):
        typer.echo("anyone who reaches this address can use the page: put TLS and passwords in front of it", err=True)
    serve(host, port, artist=artist, hypernet=hypernet, largest=largest * 10**6, keep=keep * 60, names=allow_host or ())
