"""`lorarar score`: MARS², CLIP-I, CLIP-T and DINO of a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorarar.cli.options import Download, Force, parse_settings

EXAMPLES = """Examples:

`lorarar score out --subject-refs cat --style-refs paper.png --clip ViT-B-32:openai --dino facebook/dino-vits16`

`lorarar score out --subject-refs cat --style-refs paper.png --style-words watercolor --judge http://localhost:8000/v1`"""


def run(
    images: Annotated[Path, typer.Argument(help="Folder of pictures of one subject in one style.", show_default=False)],
    subject_refs: Annotated[Path, typer.Option(help="Folder of pictures of the subject.", show_default=False)],
    style_refs: Annotated[Path, typer.Option(help="Folder of pictures in the style.", show_default=False)],
    style_words: Annotated[
        str | None, typer.Option(help='Words of the style for the judge, such as "oil painting".')
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt that the pictures were made from, for CLIP-T.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Judge for MARS²: a folder, a server's address, or a LLaVA critic's name on the hub."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="NAME=VALUE",
            help="Option of the judge. A server has model, key_variable, concurrency, timeout, longest_side, "
            "max_tokens (a model that thinks needs some 4096), temperature and max_unanswered; "
            "a critic has longest_side, max_unanswered, four_bit, device_map and revision.",
        ),
    ] = None,
    clip: Annotated[str | None, typer.Option(help="Model for CLIP-I: a folder, or NAME:TAG of open_clip.")] = None,
    dino: Annotated[str | None, typer.Option(help="Model for DINO: a folder, or its name on the hub.")] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Table to write; a .json with the same name gets the mean scores.")
    ] = Path("scores.csv"),
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the judge's answers; default: one folder for all your runs.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File with the wording of the judge's questions; default: the paper's.")
    ] = None,
    download: Download = False,
    force: Force = False,
) -> None:
    """Score your own pictures: MARS², CLIP-I, CLIP-T and DINO. Answers are cached: no question is asked twice."""
    from lorarar.device import best_device
    from lorarar.files import refuse_existing
    from lorarar.scoring import folder

    for path in (out, out.with_suffix(".json")):
        refuse_existing(path, force, images, subject_refs, style_refs)
    figures = folder.score(
        images,
        subject_refs,
        style_refs,
        out,
        judge=judge,
        style_words=style_words,
        clip=clip,
        prompt=prompt,
        dino=dino,
        options=parse_settings(setting),
        prompts=prompts or folder.PROMPTS,
        cache=cache,
        device=best_device(),
        download=download,
    )
    for name, title in folder.FIGURES.items():
        if name in figures:
            ends = f"[{figures[f'{name}_ci_low']:.3f}, {figures[f'{name}_ci_high']:.3f}]"
            typer.echo(f"{title:10}{figures[name]:.3f} {ends}")
    if figures.get("unanswered"):
        typer.echo(f"{figures['unanswered']} questions were not answered with yes or no, and count as no", err=True)
    typer.echo(f"{out}: {figures['n_images']} pictures")
