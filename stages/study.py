"""Stage study: correlate the metrics with the votes of raters."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lorarar import pictures
from lorarar.data.controls import CONTROLS
from lorarar.errors import UserError
from lorarar.files import atomic
from lorarar.merging.registry import METHODS
from lorarar.study import report
from lorarar.study.build import NothingToCompare, Sources, build
from lorarar.study.manifest import Study
from lorarar.study.simulate import panel
from lorarar.study.storage import Storage
from lorarar.study.votes import Vote, read_csv
from slurm.task import paths_sha256
from stages.shared.context import Context, code_of, collect, present
from stages.shared.entry_point import run

VOTES = Path("data/study/votes.csv")
KINDS = {
    "ratings": "No ratings collected. `lorarar study` collects them, data/study/README.md says how; put them into "
    "`data/study/votes.csv`.",
    "simulated": "No simulated raters: {}.",
}
"""Parts of the results, and the text of an empty one."""


def main(context: Context) -> None:
    """Write results/<base>/study: from the votes there are, and from a panel of simulated raters."""
    paper = yaml.safe_load(Path("data/paper_results.yaml").read_text(encoding="utf-8"))
    scores = present(context.artifacts / "score")
    hidden = context.work / "study"
    shutil.rmtree(hidden, ignore_errors=True)
    makers: dict[str, Callable[[Path], list[Vote]]] = {
        "ratings": lambda _: _collected(context),
        "simulated": lambda work: _simulated(context, work),
    }
    for kind, make in makers.items():
        try:
            votes = make(hidden / "work")
        except NothingToCompare as reason:
            print(f"study: {KINDS['simulated'].format(reason)}")
            _write(hidden / kind / "results.md", f"# Simulated raters\n\n{KINDS['simulated'].format(reason)}\n")
            continue
        if not votes:
            print("study: no ratings collected")
            _write(hidden / kind / "results.md", f"# Human study\n\n{KINDS[kind]}\n")
            continue
        resamples, seed = context.params.study.resamples, context.seed("study")
        made_from: dict[str, list[Any]] = {
            "votes": [VOTES] if kind == "ratings" else [],
            "scores": [scores],
            "code": code_of("study"),
        }
        hashes = ", ".join(f"{name} `{paths_sha256(paths)[:12]}`" for name, paths in made_from.items() if paths)
        provenance = f"Made from: base `{context.base}`, seed {context.params.seed}, {hashes}."
        report.write(hidden / kind, votes, scores, seed, resamples, paper, provenance)
    # Collected votes are in data/ already, and the panel's are not worth keeping.
    names = [f"{kind}/{name}" for kind in makers for name in ("results.md", "results.json")]
    kept = {name: hidden / name for name in names if (hidden / name).exists()}
    collect(context.results / "study", kept)


def _collected(context: Context) -> list[Vote]:
    """Votes of data/study/votes.csv, about methods, subjects and styles that exist."""
    if not VOTES.exists():
        return []
    votes = read_csv(VOTES)
    for vote in votes:
        known: list[tuple[str, str, Any]] = [
            ("method", vote.method_1, [*METHODS, *CONTROLS]),
            ("method", vote.method_2, [*METHODS, *CONTROLS]),
            ("subject", vote.subject, context.catalog.subjects),
            ("style", vote.style, context.catalog.styles),
        ]
        for kind, name, names in known:
            if name not in names:
                raise UserError(f"{VOTES}: {vote.rater} votes on {name!r}, which is no {kind} of this benchmark")
    return votes


def _simulated(context: Context, work: Path) -> list[Vote]:
    """Votes of a panel on studies of both scenarios, by a recogniser that knows every subject and style."""
    from lorarar.pocket.quality import joint
    from lorarar.pocket.recogniser import Recogniser

    knobs = context.params.study
    if not context.drawn:
        raise NothingToCompare(f"the panel recognises drawings, and {context.base}'s are photographs")
    methods = [method for method in knobs.methods if method in context.params.evaluate.methods]
    if len(methods) < 2:
        raise NothingToCompare("fewer than two of study.methods are among evaluate.methods")
    recogniser = Recogniser.load(context.data / "judges" / "recogniser")
    votes: list[Vote] = []
    reason = ""
    for split in context.params.evaluate.splits:
        sources = Sources(
            context.artifacts / "generate", context.artifacts / "score", context.artifacts / "images", split
        )
        for scenario in ("random", "best"):
            folder = work / f"{scenario}-{split}"
            try:
                build(
                    folder,
                    sources,
                    methods,
                    scenario=scenario,
                    repeats=knobs.repeats,
                    checks=knobs.checks,
                    checks_from="truth" if "truth" in context.params.evaluate.methods else None,
                    seed=context.seed("study", split),
                )
            except NothingToCompare as error:
                print(f"study: no simulated raters in the scenario {scenario} on {split}: {error}")
                reason = reason or str(error)
                continue
            study = Study.load(folder)
            truth = []
            for item in study.manifest.items:
                shown = [pictures.read(folder / "images" / f"{option.image}.png") for option in item.options]
                first, second = joint(recogniser, item.subject, item.style, shown)
                truth.append((float(sum(first)), float(sum(second))))
            storage = Storage(study)
            panel(storage, truth, knobs.raters, context.seed("study", "panel", split, scenario))
            # When this ran is no result: equal inputs make equal tables.
            votes += [vote.model_copy(update={"time": ""}) for vote in storage.votes()]
            storage.close()
    if not votes:
        raise NothingToCompare(reason)
    return votes


def _write(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
