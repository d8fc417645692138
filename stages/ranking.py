"""Stage ranking: rank the methods by other judges, and by the judge asked in other words."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lorarar.data.controls import CONTROLS
from lorarar.files import write_json
from slurm.task import Task
from stages.shared.context import Context, Group
from stages.shared.entry_point import run
from stages.shared.images_to_score import PairImages, images_to_score
from stages.shared.scoring_models import PROMPTS, ModelNames, model_names

if TYPE_CHECKING:
    from lorarar.scoring.judges import Judge


@dataclass(frozen=True)
class AskPair:
    """Lets every judge, in every wording, rate the first `number` images of a pair.

    Attributes
    ----------
    others : further judges by name, with their options.
    """

    names: ModelNames
    others: dict[str, dict[str, Any]]
    number: int
    pair: PairImages

    def run(self, folder: Path) -> None:
        from lorarar.scoring.mars2 import rate

        generated, of_subject, of_style = self.pair.read()
        found = [
            {
                "group": group,
                "name": name,
                "right": [
                    rating.right
                    for rating in rate(judge, generated[: self.number], of_subject, of_style, self.pair.words)
                ],
            }
            for group, name, judge in self._judges()
        ]
        write_json(folder / "right.json", found)

    def _judges(self) -> list[tuple[str, str, Judge]]:
        from lorarar.scoring.judges import JudgePrompts

        judge = self.names.load(quiet=True).judge
        found: list[tuple[str, str, Judge]] = []
        if judge.prompts:
            variants = JudgePrompts.variants(PROMPTS)
            found += [("wording", name, judge.reworded(prompts)) for name, prompts in variants.items()]
        for other, options in self.others.items():
            asked = replace(self.names, judge=other, options=options).load(quiet=True).judge
            found.append(("judge", asked.name, asked))
        return found


def main(context: Context) -> None:
    """Ask about every merging method and write results/<base>/ranking.json: split -> view -> method -> score."""
    score = context.knobs.score
    methods = [method for method in context.methods if method not in CONTROLS]
    names, number = model_names(context), min(score.ranking.images, context.knobs.generate.images_per_pair)
    places = [(split, method) for split in context.params.evaluate.splits for method in methods]
    tasks = [
        Task(f"{method}/{split}/{name}", AskPair(names, score.ranking.judges, number, pair),
             [pair.folder, *pair.references])
        for split, method in places
        for name, pair in images_to_score(context, method, split).items()
    ]  # fmt: skip
    (done,) = context.fan_out(Group(context.store("ranking", context.data / "judges", PROMPTS), tasks, "ranking"))
    found: dict[str, dict[str, Any]] = {split: {} for split in context.params.evaluate.splits}
    for split, method in places:
        folders = [folder for name, folder in done.items() if name.startswith(f"{method}/{split}/")]
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
