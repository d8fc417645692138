"""The command `lorarar study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorarar.errors import UserError
from lorarar.study import Scenario

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Let people compare pairs of generated images in their browsers, and see what their votes say.",
)
Folder = Annotated[Path, typer.Argument(help="Folder of the study.", show_default=False)]


@app.command(epilog="Example: `lorarar study build mine -m lorarar -m ziplora --scenario best`")
def build(
    out: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
    method: Annotated[
        list[str], typer.Option("--method", "-m", help="A method to compare with the others.", show_default=False)
    ],
    scenario: Annotated[
        Scenario, typer.Option(help="random: any image of a method; best: one of those that the judge accepted.")
    ] = "random",
    images: Annotated[Path, typer.Option(help="Generated images.")] = Path("artifacts/pocket/generate"),
    scores: Annotated[Path, typer.Option(help="Their scores.")] = Path("artifacts/pocket/score"),
    references: Annotated[Path, typer.Option(help="Pictures of subjects and styles.")] = Path(
        "artifacts/pocket/images"
    ),
    split: Annotated[str, typer.Option(help="Whose pairs.")] = "test",
    pair: Annotated[
        list[str] | None, typer.Option(help="A pair to keep, such as dog8+glowing; all by default.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=0, help="Comparisons that each rater sees twice.")] = 3,
    checks: Annotated[int, typer.Option(min=0, help="Comparisons whose answer is plain.")] = 3,
    checks_from: Annotated[
        str | None, typer.Option(help="Method whose accepted images make checks and example; any by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of images chosen, orders and sides.")] = 0,
) -> None:
    """Build a study: images under opaque names, and a manifest that never changes."""
    from lorarar.study.build import Sources, build

    sources = Sources(images, scores, references, split)
    manifest = build(
        out,
        sources,
        method,
        scenario=scenario,
        pairs=pair,
        repeats=repeats,
        checks=checks,
        checks_from=checks_from,
        seed=seed,
    )
    for line in manifest.left_out:
        typer.echo(f"left out: {line}", err=True)
    number = sum(item.kind == "pair" for item in manifest.items)
    left = f", {len(manifest.left_out)} left out" if manifest.left_out else ""
    typer.echo(
        f"{out}: {number} comparisons of {len(method)} methods{left}, {checks} checks, {repeats} repeats a rater"
    )


@app.command(epilog="Example: `lorarar study invite mine 25 --url https://study.example.org > links.csv`")
def invite(
    study: Folder,
    raters: Annotated[int, typer.Argument(min=1, max=10000, help="How many.", show_default=False)],
    days: Annotated[float, typer.Option(min=0, help="How long the links are good for.")] = 30,
    url: Annotated[str, typer.Option(help="Where raters reach the server.")] = "http://127.0.0.1:8000",
) -> None:
    """Make a link for each rater; also while the server runs."""
    from lorarar.study.manifest import Study
    from lorarar.study.storage import Storage

    storage = Storage(Study.load(study))
    typer.echo("rater,link")
    for rater in storage.invite(raters, days):
        typer.echo(f"{rater.name},{url.rstrip('/')}/r/{rater.token}")


@app.command(epilog="Example: `lorarar study serve mine --port 8000`")
def serve(
    study: Folder,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine need a proxy with TLS.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    completion_code: Annotated[
        str | None, typer.Option(help="Code that a rater of a panel, such as MTurk's, gets at the end.")
    ] = None,
    completion_link: Annotated[
        str | None, typer.Option(help="Address that a rater of a panel, such as Prolific's, goes back to at the end.")
    ] = None,
) -> None:
    """Serve a study until Ctrl-C. Every vote is on disk before it is acknowledged.

    A proxy may serve it under any path. Identifiers of Prolific and MTurk in a rater's address are kept with the rater.
    """
    from lorarar.study.manifest import Study
    from lorarar.study.server import serve

    serve(Study.load(study), host, port, completion_code, completion_link)


@app.command(epilog="Example: `lorarar study results mine --out results/mine`")
def results(
    source: Annotated[Path, typer.Argument(help="Folder of a study, or a CSV of votes.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", show_default=False)],
    scores: Annotated[
        Path | None, typer.Option(help="Scores of the images, to correlate every metric with the votes.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the intervals.")] = 0,
    resamples: Annotated[int, typer.Option(min=1, help="Of whole pairs, for the intervals.")] = 2000,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Write votes.csv, votes.json, results.json and results.md."""
    from lorarar.files import refuse_existing
    from lorarar.study import report
    from lorarar.study.manifest import Study
    from lorarar.study.storage import Storage
    from lorarar.study.votes import read_csv

    for name in report.NAMES:
        refuse_existing(out / name, force, source)
    votes = Storage(Study.load(source)).votes() if source.is_dir() else read_csv(source)
    if not votes:
        raise UserError(f"{source}: no votes yet")
    report.write(out, votes, scores, seed, resamples)
    typer.echo(f"{out / 'results.md'}: {len(votes)} votes")


@app.command(name="import", epilog="Example: `lorarar study import ratings.csv --out data/study/votes.csv`")
def import_votes(
    file: Annotated[Path, typer.Argument(help="CSV of votes; its columns: data/study/README.md.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Table to write.", show_default=False)],
    study: Annotated[Path | None, typer.Option(help="A study that must have asked what was answered.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Check votes collected elsewhere and write them as a table that `results` and the chain read."""
    from lorarar.files import refuse_existing
    from lorarar.study.manifest import Study
    from lorarar.study.votes import check_against, read_csv, write_csv

    refuse_existing(out, force, file)
    votes = read_csv(file)
    if study is not None:
        check_against(file, votes, Study.load(study))
    write_csv(out, votes)
    typer.echo(f"{out}: {len(votes)} votes of {len({vote.rater for vote in votes})} raters")
