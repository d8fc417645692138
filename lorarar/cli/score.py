"""Scores a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorarar.cli.options import Force, setting_of
from lorarar.errors import UserError

EPILOG = """Examples:

`lorarar score out --subject-refs cat --style-refs paper.png --clip ViT-B-32:openai --dino facebook/dino-vits16`

`lorarar score out --subject-refs cat --style-refs paper.png --style-words watercolor --judge http://localhost:8000/v1`"""


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
        Path, typer.Option("--out", "-o", help="Table to write; the figures go to a .json file with the same name.")
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
    """Score pictures of one's own: MARS², CLIP-I, CLIP-T and DINO. Answers are cached: no question is asked twice."""
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
        options=dict(setting_of(text) for text in setting or []),
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
