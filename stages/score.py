"""Stage score: score the images of every method on every split, and summarise the scores."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorarar.errors import UserError
from lorarar.files import write_json
from lorarar.scoring import score_table
from slurm.task import Task, paths_sha256
from stages.shared.context import Context, Group, collect
from stages.shared.entry_point import run
from stages.shared.images_to_score import PairImages, images_to_score
from stages.shared.scoring_models import PROMPTS, ModelNames, model_names, provenance
from stages.shared.tracking import tracked

if TYPE_CHECKING:
    from lorarar.pocket.recogniser import Recogniser


@dataclass(frozen=True)
class ScorePair:
    """Scores the images of one pair; `families` is the recogniser's folder in a drawn world."""

    names: ModelNames
    families: str | None
    pair: PairImages

    def run(self, folder: Path) -> None:
        from lorarar.scoring.clip import clip_i, clip_t
        from lorarar.scoring.dino import dino
        from lorarar.scoring.mars2 import rate

        by, words = self.names.load(quiet=True), self.pair.words
        generated, of_subject, of_style = self.pair.read()
        recognised = recogniser(self.families).recognise(generated) if self.families else [None] * len(generated)
        columns = zip(
            rate(by.judge, generated, of_subject, of_style, words),
            recognised,
            clip_i(by.clip, generated, of_style).tolist(),
            dino(by.dino, generated, of_subject).tolist(),
            clip_t(by.clip, generated, self.pair.prompt).tolist(),
            strict=True,
        )
        rows = [
            score_table.Row(
                subject=self.pair.subject,
                style=self.pair.style,
                index=index,
                subject_yes=rating.subject.yes,
                style_yes=rating.style.yes,
                subject_prob=rating.subject.probability,
                style_prob=rating.style.probability,
                subject_unanswered=rating.subject.unanswered,
                style_unanswered=rating.style.unanswered,
                family_yes=None if recognition is None else recognition.family == words,
                clip_i=to_style,
                dino=to_subject,
                clip_t=to_prompt,
            )
            for index, (rating, recognition, to_style, to_subject, to_prompt) in enumerate(columns)
        ]
        score_table.write(folder / "scores.parquet", rows)
        write_json(folder / "models.json", by.models)


@cache
def recogniser(folder: str) -> Recogniser:
    """The recogniser of families, loaded once in each process."""
    from lorarar.pocket.recogniser import Recogniser

    return Recogniser.load(folder)


def main(context: Context) -> None:
    """Score the pairs that are not there yet, then write one table and one metrics file for each method and split."""
    names, judges = model_names(context), context.data / "judges"
    families = str(judges / "recogniser") if (judges / "recogniser").exists() else None
    evaluate = context.params.evaluate
    shown = {
        (method, split): images_to_score(context, method, split)
        for method in evaluate.methods
        for split in evaluate.splits
    }
    tasks = [
        Task(f"{method}/{split}/{name}", ScorePair(names, families, pair), [pair.folder, *pair.references])
        for (method, split), pairs in shown.items()
        for name, pair in pairs.items()
    ]
    (done,) = context.fan_out(Group(context.store("score", judges, PROMPTS), tasks, "score"))
    hidden = context.work / "scores"
    shutil.rmtree(hidden, ignore_errors=True)
    for (method, split), pairs in shown.items():
        folders = [done[f"{method}/{split}/{name}"] for name in pairs]
        rows = [row for folder in folders for row in score_table.read(folder / "scores.parquet")]
        score_table.write(hidden / "score" / f"{method}-{split}.parquet", rows)
        metrics = hidden / "metrics" / f"{method}-{split}.json"
        if not pairs:
            reason = f"no images of {method} on {split}: its pictures are not known in {context.base}"
            print(f"score: {reason}")
            write_json(metrics, {"n_images": 0, "not_known": reason})
            continue
        figures: dict[str, Any] = score_table.summarise(rows)
        references = sorted({Path(path) for pair in pairs.values() for path in pair.references})
        figures["provenance"] = provenance(context, _models(folders)) | {"references": paths_sha256(references)[:12]}
        write_json(metrics, figures)
        with tracked(context.work / "tracking", f"metrics/{method}-{split}") as log:
            log(0, {name: value for name, value in figures.items() if isinstance(value, float)})
    for kind, out in (("score", context.artifacts / "score"), ("metrics", context.results / "metrics")):
        collect(out, {path.name: path for path in sorted((hidden / kind).iterdir())})


def _models(folders: list[Path]) -> dict[str, Any]:
    """The models that all pairs were scored by."""
    used = {(folder / "models.json").read_text(encoding="utf-8") for folder in folders}
    if len(used) > 1:
        store = folders[0].parent
        raise UserError(f"{store}: the pairs were scored by different models; delete the folder and run `dvc repro`")
    return json.loads(used.pop())


if __name__ == "__main__":
    run(main)
