"""The models that score, as the section `score` of params.yaml names them: what stages judge and score share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorarar.errors import UserError
from lorarar.files import sha256
from stages.shared.context import Context, present

if TYPE_CHECKING:
    from lorarar.scoring.clip import Clip
    from lorarar.scoring.dino import Dino
    from lorarar.scoring.judges.cache import CachedJudge

PROMPTS = Path("data/prompts.yaml")


@dataclass(frozen=True)
class Scorers:
    """A judge that is asked nothing twice, CLIP and DINO; `models` says which they are."""

    judge: CachedJudge
    clip: Clip
    dino: Dino
    models: dict[str, Any]


def named(context: Context) -> dict[str, Any]:
    """What `load` takes, in JSON values: the shipped folder of a model that has one, else its name."""
    score, shipped = context.knobs.score, context.data / "judges"
    names = {kind: getattr(score, kind) for kind in ("judge", "clip", "dino")}
    found = {kind: str(shipped / name) if (shipped / name).is_dir() else name for kind, name in names.items()}
    return found | {"options": score.judge_options, "verdicts": f".work/{context.base}/verdicts"}


@dataclass(frozen=True)
class Shown:
    """What is asked about one pair.

    Attributes
    ----------
    arguments : of a task: `images`, the folder of generated ones, `pair`, `references` of subject and style, `words`.
    files : all that is looked at.
    prompt : what CLIP-T compares with, one wording for all, so that methods and controls are measured alike.
    """

    arguments: dict[str, Any]
    files: list[Path]
    prompt: str


def shown(context: Context, method: str, split: str) -> dict[str, Shown]:
    """Every pair that a method has images of on a split, by its name.

    Raises
    ------
    UserError : there are no images, or of what is no pair.
    """
    found = {}
    generated = present(context.artifacts / "generate" / method / split)
    for folder in sorted(path for path in generated.iterdir() if path.is_dir()):
        try:
            of_subject, of_style = folder.name.split("+")
            subject, style = context.catalog.subjects[of_subject], context.catalog.styles[of_style]
        except (KeyError, ValueError):
            raise UserError(f"{folder}: not the name of a pair; delete the folder and run `dvc repro`") from None
        references = [context.pictures(subject), context.pictures(style)]
        arguments = {
            "images": str(folder),
            "pair": [subject.name, style.name],
            "references": [[str(path) for path in paths] for paths in references],
            "words": style.words,
        }
        files = [folder, *references[0], *references[1]]
        found[folder.name] = Shown(arguments, files, context.catalog.class_prompt(subject, style))
    return found


def provenance(context: Context, models: dict[str, Any]) -> dict[str, Any]:
    """What figures were made by. A list inside, as `dvc metrics` makes a column of everything in an object."""
    return {
        "models": [
            {"scores": ["mars2"], "judge": models["judge"]},
            {"scores": ["clip_i", "clip_t"], **models["clip"]},
            {"scores": ["dino"], **models["dino"]},
        ],
        "prompts": sha256(PROMPTS)[:12],
        "seed": context.params.seed,
        "resamples": context.knobs.score.resamples,
    }


def load(names: dict[str, Any], quiet: bool = False) -> Scorers:
    """Load what `named` names, once in each process; `quiet` for workers, whose parent shows progress."""
    return _loaded(json.dumps(names), quiet)


@cache
def _loaded(names: str, quiet: bool) -> Scorers:
    from lorarar.device import best_device
    from lorarar.scoring.folder import backbones
    from lorarar.scoring.judges import JudgePrompts, load_judge
    from lorarar.scoring.judges.cache import CachedJudge

    given = json.loads(names)
    device = best_device()
    judge = load_judge(given["judge"], JudgePrompts.load(PROMPTS), device, **given["options"])
    asked = CachedJudge(judge, given["verdicts"], quiet=quiet)
    clip, dino = backbones(given["clip"], given["dino"], device).values()
    models = {"judge": judge.identity, "clip": clip.describe(), "dino": dino.describe()}
    return Scorers(asked, clip, dino, models)
