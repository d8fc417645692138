"""The command `lorarar`: merge two LoRA files into one, look into files, list methods, convert formats, score
pictures, and have people compare them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from ast import literal_eval
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lorarar.errors import UserError, printable
from lorarar.study.cli import app as study

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Merge a content and a style LoRA of one base model into one file, and score the pictures it makes.",
)
app.add_typer(study, name="study")


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
    from lorarar.merge.api import merge_files

    begun = time.monotonic()
    options = dict(_setting(text) for text in setting or [])
    if hypernet is not None:
        options["hypernet"] = hypernet
    notes = merge_files(
        content,
        style,
        out,
        method=method,
        format=format.value,
        dtype=dtype and dtype.value,
        force=force,
        options=options,
    )
    for note in notes:
        typer.echo(note, err=True)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB in {time.monotonic() - begun:.1f} s")


@app.command(
    epilog="""Examples:

`lorarar generate dog8 glowing -o pictures`

`lorarar generate dog8 glowing -o pictures -m lorarar -m direct -m average`

`lorarar generate cat.safetensors oil.safetensors -o out --base sdxl -m direct --prompt "a sks cat in oil style"`"""
)
def generate(
    content: Annotated[
        str, typer.Argument(help="LoRA of the subject: a file, or an example's name.", show_default=False)
    ],
    style: Annotated[str, typer.Argument(help="LoRA of the style, likewise.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.", show_default=False)],
    method: Annotated[
        list[str] | None,
        typer.Option("--method", "-m", help="Of `lorarar methods`, by default lorarar; may be given several times."),
    ] = None,
    base: Annotated[Path | None, typer.Option(help="Folder of the base model; the miniature by default.")] = None,
    hypernet: Annotated[Path | None, typer.Option(help="For method lorarar with another base.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the LoRAs were trained on; of examples it is known.")] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Pictures by each method.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the first picture.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Of sampling.")] = 25,
    guidance: Annotated[
        float | None, typer.Option(help="Weight of the prompt; by default 1.5 for the miniature, 7.5 for others.")
    ] = None,
    force: Force = False,
) -> None:
    """Merge two LoRAs and look at the pictures at once. Examples are the miniature's test subjects and styles."""
    from lorarar import preview

    notes = preview.show(
        content,
        style,
        out,
        methods=method or ["lorarar"],
        base=base or preview.POCKET,
        hypernet=hypernet,
        prompt=prompt,
        number=number,
        seed=seed,
        steps=steps,
        guidance=guidance,
        force=force,
    )
    for note in notes:
        typer.echo(note)
    typer.echo(f"{out / 'overview.webp'}: all of them")


@app.command(epilog="Example: `lorarar inspect cat.safetensors`")
def inspect(
    file: Annotated[Path, typer.Argument(help="A LoRA file.", show_default=False)],
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
) -> None:
    """Say what is in a LoRA file: format, base model, layers, ranks, norms."""
    from lorarar.lora import base_models
    from lorarar.lora.adapter import Adapter

    adapter = Adapter.load(file)
    adapter.check(str(file))
    typer.echo(f"{file}: {adapter.format} format, {file.stat().st_size / 1e6:.1f} MB")
    typer.echo(f"base: {base_models.guess(adapter.layers)}, by the shapes of its layers")
    if adapter.layers:
        dtypes = sorted({str(factors.down.dtype).removeprefix("torch.") for factors in adapter.layers.values()})
        ranks = sorted(set(adapter.ranks.values()))
        typer.echo(f"linear layers of the UNet: {len(adapter.layers)}, rank {_range(ranks)}, {', '.join(dtypes)}")
        norms = {path: factors.norm for path, factors in adapter.layers.items()}
        total = sum(norm**2 for norm in norms.values()) ** 0.5
        largest = max(norms, key=norms.__getitem__)
        typer.echo(f"norm of all updates: {total:.4g}; largest: {norms[largest]:.4g} in {largest}")
    if adapter.unmerged:
        typer.echo(f"other layers, carried over by a merge: {len(adapter.unmerged)}, such as {min(adapter.unmerged)}")
    for key, value in sorted(adapter.metadata.items()):
        typer.echo(printable(f"{key}: {value if len(value) <= 200 else value[:200] + ' ...'}"))
    if layers:
        for path, (down, up) in adapter.layers.items():
            typer.echo(f"{path}  {up.shape[0]} x {down.shape[1]}  rank {down.shape[0]}  norm {norms[path]:.4g}")


@app.command(epilog="Example: `lorarar doctor --base sdxl`")
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
    from lorarar.files import refuse_existing
    from lorarar.lora.adapter import Adapter
    from lorarar.lora.formats import DTYPES, sidecars

    for path in (out, *sidecars(out, format.value)):
        refuse_existing(path, force, file)
    adapter = Adapter.load(file)
    for path in sidecars(out, format.value):
        refuse_existing(path, True, *sidecars(file, adapter.format))
    adapter.check(str(file))
    adapter.save(out, format=format.value, dtype=DTYPES[dtype.value] if dtype else None)
    typer.echo(f"{out}: {len(adapter.layers) + len(adapter.unmerged)} layers in {format.value} format")


@app.command(
    epilog="""Examples:

`lorarar score out --subject-refs cat --style-refs paper.png --clip ViT-B-32:openai --dino facebook/dino-vits16`

`lorarar score out --subject-refs cat --style-refs paper.png --style-words watercolor --judge http://localhost:8000/v1`"""
)
def score(
    images: Annotated[Path, typer.Argument(help="Folder of pictures of one subject in one style.", show_default=False)],
    subject_refs: Annotated[Path, typer.Option(help="Folder of pictures of the subject.", show_default=False)],
    style_refs: Annotated[Path, typer.Option(help="Folder of pictures in the style.", show_default=False)],
    style_words: Annotated[
        str | None, typer.Option(help='Words of the style for the judge, such as "oil painting".')
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the pictures were made from, for CLIP-T.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="MARS² by this judge: a folder, a server's address, or a LLaVA critic's name on the hub."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="NAME=VALUE",
            help="An option of the judge. Of a server: model, key_variable, concurrency, timeout, longest_side; "
            "of a critic: longest_side, four_bit, device_map, revision.",
        ),
    ] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP-I by this model: a folder, or NAME:TAG of open_clip.")] = None,
    dino: Annotated[str | None, typer.Option(help="DINO by this model: a folder, or its name on the hub.")] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Table to write; its figures go to a .json beside it.")
    ] = Path("scores.csv"),
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the judge's verdicts; by default one for all of a user's runs.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Wording of the judge's questions; by default the paper's.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch models that are not on this machine yet.")
    ] = False,
    force: Force = False,
) -> None:
    """Score pictures of one's own: MARS², CLIP-I, CLIP-T and DINO. A judge is asked nothing twice."""
    from lorarar.device import best_device
    from lorarar.files import refuse_existing
    from lorarar.scoring.folder import FIGURES, PROMPTS
    from lorarar.scoring.folder import score as score_folder

    for path in (out, out.with_suffix(".json")):
        refuse_existing(path, force, images, subject_refs, style_refs)
    if judge and not prompts and not PROMPTS.exists():
        raise UserError("--prompts: the wording is not in the package; give data/prompts.yaml of the repository")
    figures = score_folder(
        images,
        subject_refs,
        style_refs,
        out,
        judge=judge,
        style_words=style_words,
        clip=clip,
        prompt=prompt,
        dino=dino,
        options=dict(_setting(text) for text in setting or []),
        prompts=prompts or PROMPTS,
        cache=cache,
        device=best_device(),
        download=download,
    )
    for name in FIGURES:
        if name in figures:
            ends = f"[{figures[f'{name}_ci_low']:.3f}, {figures[f'{name}_ci_high']:.3f}]"
            typer.echo(f"{FIGURES[name]:10}{figures[name]:.3f} {ends}")
    if figures.get("unanswered"):
        typer.echo(f"{figures['unanswered']} questions were not answered with yes or no, and count as no", err=True)
    typer.echo(f"{out}: {figures['n_images']} pictures")


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
