"""Stage score: judge the images of one method on one split, and sum the scores up."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorarar import pictures
from lorarar.errors import UserError
from lorarar.files import write_json
from lorarar.scoring import score_table
from slurm.task import fingerprint
from stages.shared import scoring_models
from stages.shared.context import Context
from stages.shared.entry_point import run

if TYPE_CHECKING:
    from lorarar.pocket.recogniser import Recogniser

CODE = [
    "lorarar/device.py",
    "lorarar/pocket/recogniser.py",
    "lorarar/scoring/score_table.py",
    "lorarar/scoring",
    "stages/score.py",
    "stages/shared/scoring_models.py",
]


@cache
def recogniser(folder: Path) -> Recogniser:
    """The recogniser of families, loaded once in each process."""
    from lorarar.pocket.recogniser import Recogniser

    return Recogniser.load(folder)


def judge_pair(
    folder: Path,
    names: dict[str, Any],
    families: str | None,
    images: str,
    pair: list[str],
    references: list[list[str]],
    words: str,
    prompt: str,
) -> None:
    """Task: score the images of one pair by the models of these names; `references` show its subject and its style."""
    from lorarar.scoring.clip import clip_i, clip_t
    from lorarar.scoring.dino import dino
    from lorarar.scoring.mars2 import rate

    by = scoring_models.load(names, quiet=True)
    generated = pictures.read_all(images)
    of_subject, of_style = ([pictures.read(path) for path in paths] for paths in references)
    recognised = recogniser(Path(families)).recognise(generated) if families else [None] * len(generated)
    columns = zip(
        rate(by.judge, generated, of_subject, of_style, words),
        recognised,
        clip_i(by.clip, generated, of_style).tolist(),
        dino(by.dino, generated, of_subject).tolist(),
        clip_t(by.clip, generated, prompt).tolist(),
        strict=True,
    )
    rows = [
        score_table.Row(
            subject=pair[0],
            style=pair[1],
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


def main(context: Context) -> None:
    """Score those pairs that are not there yet, then write one table and one metrics file."""
    method, split = context.arguments
    judges = context.data / "judges"
    families = judges / "recogniser"
    shared = {"names": scoring_models.named(context), "families": str(families) if families.exists() else None}
    pairs = scoring_models.shown(context, method, split)
    tasks = {name: (shared | shown.arguments | {"prompt": shown.prompt}, shown.files) for name, shown in pairs.items()}
    store = context.store("score", CODE, judges, scoring_models.PROMPTS)
    done = context.fan_out(store, judge_pair, tasks, f"score {method} {split}")
    if not tasks:
        reason = f"no images of {method} on {split}: its pictures are not known in {context.base}"
        print(f"score: {reason}")
        score_table.write(context.artifacts / "score" / f"{method}-{split}.parquet", [])
        write_json(context.results / "metrics" / f"{method}-{split}.json", {"n_images": 0, "not_known": reason})
        return
    rows = [row for folder in done.values() for row in score_table.read(folder / "scores.parquet")]
    score_table.write(context.artifacts / "score" / f"{method}-{split}.parquet", rows)
    figures: dict[str, Any] = score_table.summarise(rows, context.seed("score"), context.knobs.score.resamples)
    models = _models(list(done.values()))
    references = sorted({path for shown in pairs.values() for path in shown.files[1:]})
    figures["provenance"] = scoring_models.provenance(context, models) | {"references": fingerprint(references)[:12]}
    write_json(context.results / "metrics" / f"{method}-{split}.json", figures)


def _models(folders: list[Path]) -> dict[str, Any]:
    """The models that all pairs were scored by."""
    used = {(folder / "models.json").read_text(encoding="utf-8") for folder in folders}
    if len(used) > 1:
        store = folders[0].parent
        raise UserError(f"{store}: the pairs were scored by different models; delete the folder and run `dvc repro`")
    return json.loads(used.pop())


if __name__ == "__main__":
    run(main, "method", "split")
