"""The models that score, as the section `score` of params.yaml names them: what stages judge and score share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.context import Context

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


def load(names: dict[str, Any]) -> Scorers:
    """Load what `named` names, once in each process."""
    return _loaded(json.dumps(names))


@cache
def _loaded(names: str) -> Scorers:
    from lorarar.scoring.judges import JudgePrompts, load_judge
    from lorarar.scoring.judges.cache import CachedJudge
    from lorarar.scoring.own import backbones

    given = json.loads(names)
    judge = load_judge(given["judge"], JudgePrompts.load(PROMPTS), **given["options"])
    # The stage shows its own progress, a line for all workers.
    asked = CachedJudge(judge, given["verdicts"], quiet=True)
    clip, dino = backbones(given["clip"], given["dino"]).values()
    models = {"judge": judge.identity, "clip": clip.describe(), "dino": dino.describe()}
    return Scorers(asked, clip, dino, models)
