"""Stage score: judge the images of one method on one split, and sum the scores up."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from lorarar import pictures
from lorarar.catalog import pair_name
from lorarar.errors import UserError
from lorarar.files import write_json
from lorarar.report import scores
from stages.context import Context, present
from stages.run import run

CODE = [
    "lorarar/pocket/recogniser.py",
    "lorarar/report/scores.py",
    "lorarar/scoring",
    "stages/score.py",
]
PROMPTS = Path("data/prompts.yaml")


@cache
def models(judges: Path) -> tuple[Any, ...]:
    """All that scores, loaded once in each process: CLIP, DINO, the judge, the recogniser of families."""
    from lorarar.pocket.recogniser import Recogniser
    from lorarar.scoring.clip import Clip
    from lorarar.scoring.dino import Dino
    from lorarar.scoring.judges import JudgePrompts, load_judge

    return (
        Clip.load(judges / "clip"),
        Dino.load(judges / "dino"),
        load_judge(judges / "critic", JudgePrompts.load(PROMPTS)),
        Recogniser.load(judges / "recogniser"),
    )


def judge_pair(
    folder: Path,
    judges: str,
    images: str,
    pair: list[str],
    references: list[list[str]],
    words: str,
    prompt: str,
) -> None:
    """Task: score the images of one pair; `references` show its subject and its style."""
    from lorarar.scoring.clip import clip_i, clip_t
    from lorarar.scoring.dino import dino
    from lorarar.scoring.mars2 import rate

    clip, vit, judge, recogniser = models(Path(judges))
    generated = pictures.read_all(images)
    of_subject, of_style = ([pictures.read(path) for path in paths] for paths in references)
    columns = zip(
        rate(judge, generated, of_subject, of_style, words),
        recogniser.recognise(generated),
        clip_i(clip, generated, of_style).tolist(),
        dino(vit, generated, of_subject).tolist(),
        clip_t(clip, generated, prompt).tolist(),
        strict=True,
    )
    rows = [
        scores.Row(
            subject=pair[0],
            style=pair[1],
            index=index,
            subject_yes=rating.subject.yes,
            style_yes=rating.style.yes,
            subject_prob=rating.subject.probability or 0.0,
            style_prob=rating.style.probability or 0.0,
            family_yes=recognition.family == words,
            clip_i=to_style,
            dino=to_subject,
            clip_t=to_prompt,
        )
        for index, (rating, recognition, to_style, to_subject, to_prompt) in enumerate(columns)
    ]
    scores.write(folder / "scores.csv", rows)


def main(context: Context) -> None:
    """Score those pairs that are not there yet, then write one table and one metrics file."""
    method, split = context.arguments
    generated = present(context.artifacts / "generate" / method / split)
    judges = context.data / "judges"
    tasks: dict[str, tuple[dict[str, Any], list[Path]]] = {}
    for folder in sorted(path for path in generated.iterdir() if path.is_dir()):
        try:
            of_subject, of_style = folder.name.split("+")
            subject, style = context.catalog.subjects[of_subject], context.catalog.styles[of_style]
        except (KeyError, ValueError):
            raise UserError(f"{folder}: not the name of a pair; delete the folder and run `dvc repro`") from None
        references = [context.pictures(subject), context.pictures(style)]
        arguments = {
            "judges": str(judges),
            "images": str(folder),
            "pair": [subject.name, style.name],
            "references": [[str(path) for path in paths] for paths in references],
            "words": style.words,
            # One wording for all, so that CLIP-T compares methods and controls alike.
            "prompt": context.catalog.class_prompt(subject, style),
        }
        tasks[pair_name(subject, style)] = (arguments, [folder, *references[0], *references[1]])
    store = context.store("score", CODE, judges, PROMPTS)
    done = context.fan_out(store, judge_pair, tasks, f"score {method} {split}")
    rows = [row for folder in done.values() for row in scores.read(folder / "scores.csv")]
    scores.write(context.artifacts / "score" / f"{method}-{split}.csv", rows)
    figures = scores.summarise(rows, context.seed("score"), context.knobs.score.resamples)
    write_json(context.results / "metrics" / f"{method}-{split}.json", figures)


if __name__ == "__main__":
    run(main, "method", "split")
