"""Stage ranking: how the methods rank in the eyes of other judges, and of the judge asked in other words."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lorarar import pictures
from lorarar.data.controls import CONTROLS
from lorarar.files import write_json
from stages.shared import scoring_models
from stages.shared.context import Context
from stages.shared.entry_point import run

if TYPE_CHECKING:
    from lorarar.scoring.judges import Judge

CODE = ["lorarar/device.py", "lorarar/scoring", "stages/ranking.py", "stages/shared/scoring_models.py"]


def ask_pair(
    folder: Path,
    names: dict[str, Any],
    others: dict[str, dict[str, Any]],
    number: int,
    images: str,
    pair: list[str],
    references: list[list[str]],
    words: str,
) -> None:
    """Task: let every judge, in every wording, rate the first images of a pair."""
    from lorarar.scoring.mars2 import rate

    generated = pictures.read_all(images)[:number]
    of_subject, of_style = ([pictures.read(path) for path in paths] for paths in references)
    found = [
        {
            "group": group,
            "name": name,
            "right": [rating.right for rating in rate(judge, generated, of_subject, of_style, words)],
        }
        for group, name, judge in _judges(names, others)
    ]
    write_json(folder / "right.json", found)


def _judges(names: dict[str, Any], others: dict[str, dict[str, Any]]) -> list[tuple[str, str, Judge]]:
    from lorarar.scoring.judges import JudgePrompts

    judge = scoring_models.load(names, quiet=True).judge
    found: list[tuple[str, str, Judge]] = []
    if judge.prompts:
        variants = JudgePrompts.variants(scoring_models.PROMPTS)
        found += [("wording", name, judge.reworded(prompts)) for name, prompts in variants.items()]
    for other, options in others.items():
        asked = scoring_models.load(names | {"judge": other, "options": options}, quiet=True).judge
        found.append(("judge", asked.name, asked))
    return found


def main(context: Context) -> None:
    """Ask about every merging method and write results/<base>/ranking.json: split -> view -> method -> score."""
    score = context.knobs.score
    methods = [method for method in context.methods if method not in CONTROLS]
    shared = {
        "names": scoring_models.named(context),
        "others": score.ranking.judges,
        "number": min(score.ranking.images, context.knobs.generate.images_per_pair),
    }
    places = [(split, method) for split in context.params.evaluate.splits for method in methods]
    tasks = {
        f"{method}-{split}-{name}": (shared | shown.arguments, shown.files)
        for split, method in places
        for name, shown in scoring_models.shown(context, method, split).items()
    }
    store = context.store("ranking", CODE, context.data / "judges", scoring_models.PROMPTS)
    done = context.fan_out(store, ask_pair, tasks, "ranking")
    found: dict[str, dict[str, Any]] = {split: {} for split in context.params.evaluate.splits}
    for split, method in places:
        folders = [folder for name, folder in done.items() if name.startswith(f"{method}-{split}-")]
        by_pair = [json.loads((folder / "right.json").read_text(encoding="utf-8")) for folder in folders]
        for views in zip(*by_pair, strict=True):
            right = [value for view in views for value in view["right"]]
            view = found[split].setdefault(
                f"{views[0]['group']}: {views[0]['name']}",
                {"group": views[0]["group"], "name": views[0]["name"], "images": len(right), "scores": {}},
            )
            view["scores"][method] = round(fmean(right), 6)
    write_json(context.results / "ranking.json", {split: list(views.values()) for split, views in found.items()})


if __name__ == "__main__":
    run(main)
