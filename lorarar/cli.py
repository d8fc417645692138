"""The command `lorarar`: merge two LoRA files into one, look into files, list methods, convert formats."""

from __future__ import annotations

import sys
import time
from ast import literal_eval
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lorarar.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Merge a content and a style LoRA of one base model into one file.",
)


class Format(StrEnum):
    """How a LoRA file names its tensors."""

    diffusers = "diffusers"
    peft = "peft"
    kohya = "kohya"
    kohya_sgm = "kohya-sgm"


class Dtype(StrEnum):
    """How a LoRA file stores its numbers."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.", show_default=False)]
Layout = Annotated[Format, typer.Option("--format", "-f", help="Names of the tensors written.")]
Numbers = Annotated[
    Dtype | None, typer.Option("--dtype", "-d", help="Numbers written; by default as the content file's.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]


@app.command(
    epilog="""Examples:

`lorarar merge cat.safetensors watercolor.safetensors -o both.safetensors --method direct`

`lorarar merge cat.safetensors watercolor.safetensors -o both.safetensors --hypernet hypernet.pth`

`lorarar merge cat.safetensors watercolor.safetensors -o both.safetensors -m ties -s density=0.3 -s space=delta`"""
)
def merge(
    content: Annotated[Path, typer.Argument(help="LoRA of the subject.", show_default=False)],
    style: Annotated[Path, typer.Argument(help="LoRA of the style.", show_default=False)],
    out: Out,
    method: Annotated[str, typer.Option("--method", "-m", help="One of `lorarar methods`.")] = "lorarar",
    hypernet: Annotated[
        Path | None, typer.Option(help="Trained hypernetwork (.safetensors or .pth) for method lorarar.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="NAME=VALUE", help="An option of the method, see `lorarar methods`."),
    ] = None,
    format: Layout = Format.diffusers,
    dtype: Numbers = None,
    force: Force = False,
) -> None:
    """Merge two LoRA files into one standard LoRA file."""
    from lorarar.merge.files import merge_files

    begun = time.monotonic()
    options = dict(_setting(text) for text in setting or [])
    if hypernet is not None:
        options["hypernet"] = hypernet
    notes = merge_files(
        content, style, out, method=method, format=format.value, dtype=dtype and dtype.value, force=force, **options
    )
    for note in notes:
        typer.echo(note, err=True)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB in {time.monotonic() - begun:.1f} s")


@app.command(epilog="Example: `lorarar inspect cat.safetensors`")
def inspect(
    file: Annotated[Path, typer.Argument(help="A LoRA file.", show_default=False)],
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
) -> None:
    """Say what is in a LoRA file: format, base model, layers, ranks, norms."""
    from lorarar.adapter import Adapter
    from lorarar.formats import bases

    adapter = Adapter.load(file)
    adapter.check(str(file))
    typer.echo(f"{file}: {adapter.format} format, {file.stat().st_size / 1e6:.1f} MB")
    typer.echo(f"base: {bases.guess(adapter.layers)}, by the shapes of its layers")
    if adapter.layers:
        dtypes = sorted({str(factors.down.dtype).removeprefix("torch.") for factors in adapter.layers.values()})
        ranks = sorted(set(adapter.ranks.values()))
        typer.echo(f"linear layers of the UNet: {len(adapter.layers)}, rank {_range(ranks)}, {', '.join(dtypes)}")
        norms = {path: factors.norm for path, factors in adapter.layers.items()}
        total = sum(norm**2 for norm in norms.values()) ** 0.5
        largest = max(norms, key=norms.__getitem__)
        typer.echo(f"norm of all updates: {total:.4g}; largest: {norms[largest]:.4g} in {largest}")
    if adapter.rest:
        typer.echo(f"other layers, carried over by a merge: {len(adapter.rest)}, such as {min(adapter.rest)}")
    for key, value in sorted(adapter.metadata.items()):
        typer.echo(f"{key}: {value if len(value) <= 200 else value[:200] + ' ...'}")
    if layers:
        for path, (down, up) in adapter.layers.items():
            typer.echo(f"{path}  {up.shape[0]} x {down.shape[1]}  rank {down.shape[0]}  norm {norms[path]:.4g}")


@app.command()
def methods() -> None:
    """List the merging methods with their options."""
    from lorarar.merge.registry import METHODS

    for method in METHODS.values():
        needs = {"": "", "hypernet": "needs --hypernet", "base+images": "needs a base model and images: `dvc repro`"}
        exact = "one exact LoRA" if method.exact else "approximated"
        typer.echo(f"{method.name:16}{method.title:22}{method.paper:18}{exact:18}{needs[method.needs]}".rstrip())
        if method.options:
            options = ", ".join(f"{name}={_text(default)}" for name, default in method.options.items())
            typer.echo(f"{'':16}options: {options}")


@app.command(epilog="Example: `lorarar convert kohya.safetensors -o diffusers.safetensors`")
def convert(
    file: Annotated[Path, typer.Argument(help="A LoRA file in any format.", show_default=False)],
    out: Out,
    format: Layout = Format.diffusers,
    dtype: Numbers = None,
    force: Force = False,
) -> None:
    """Write a LoRA file in another format; alpha is folded into the factors."""
    from lorarar.adapter import Adapter
    from lorarar.merge.files import DTYPES, refuse_existing

    refuse_existing(out, force, file)
    adapter = Adapter.load(file)
    adapter.check(str(file))
    adapter.save(out, format=format.value, dtype=DTYPES[dtype.value] if dtype else None)
    typer.echo(f"{out}: {len(adapter.layers) + len(adapter.rest)} layers in {format.value} format")


def main() -> None:
    """Run the command; a user's mistake ends with one line and exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UserError(f"--set {text}: write it as NAME=VALUE, such as density=0.5")
    try:
        return name, literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _range(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


if __name__ == "__main__":
    main()
