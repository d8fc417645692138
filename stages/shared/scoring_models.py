"""The models that score, as section `score` of params.yaml names them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorarar.files import sha256
from slurm.task import WORK
from stages.shared.context import Context

if TYPE_CHECKING:
    from lorarar.scoring.clip import Clip
    from lorarar.scoring.dino import Dino
    from lorarar.scoring.judges.cache import CachedJudge

PROMPTS = Path("data/prompts.yaml")


@dataclass(frozen=True)
class Loaded:
    """A judge with cached answers, CLIP and DINO; `models` is their provenance."""

    judge: CachedJudge
    clip: Clip
    dino: Dino
    models: dict[str, Any]


@dataclass(frozen=True)
class ModelNames:
    """Names of the models: shipped folders, or what elsewhere is called so.

    Attributes
    ----------
    base : the world, which keeps the judge's answers.
    options : of the judge.
    """

    base: str
    judge: str
    clip: str
    dino: str
    options: dict[str, Any] = field(default_factory=dict)

    def load(self, quiet: bool = False) -> Loaded:
        """Load them, once in each process; `quiet` for workers, whose parent shows progress."""
        return _load(self.base, self.judge, self.clip, self.dino, tuple(sorted(self.options.items())), quiet)


def model_names(context: Context) -> ModelNames:
    """The names that params.yaml gives; a shipped model has its folder."""
    score, shipped = context.knobs.score, context.data / "judges"
    names = {kind: getattr(score, kind) for kind in ("judge", "clip", "dino")}
    found = {kind: str(shipped / name) if (shipped / name).is_dir() else name for kind, name in names.items()}
    return ModelNames(context.base, **found, options=score.judge_options)


def provenance(context: Context, models: dict[str, Any]) -> dict[str, Any]:
    """The models and settings of some figures. A list inside, as `dvc metrics` makes columns of an object's keys."""
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


@cache
def _load(base: str, judge: str, clip: str, dino: str, options: tuple[tuple[str, Any], ...], quiet: bool) -> Loaded:
    from lorarar.device import best_device
    from lorarar.scoring.folder import similarity_models
    from lorarar.scoring.judges import JudgePrompts, load_judge
    from lorarar.scoring.judges.cache import CachedJudge

    device = best_device()
    asked = load_judge(judge, JudgePrompts.load(PROMPTS), device, **dict(options))
    cached = CachedJudge(asked, str(WORK / base / "verdicts"), quiet=quiet)
    of_images, of_subjects = similarity_models(clip, dino, device).values()
    models = {"judge": asked.identity, "clip": of_images.describe(), "dino": of_subjects.describe()}
    return Loaded(cached, of_images, of_subjects, models)
