"""The sections of params.yaml: which knobs there are, and of which types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt

from lorarar.training.objective import Fidelity, Orthogonality
from slurm.fanout import Executor
from slurm.resources import Resources

EvaluatedSplit = Literal["val", "test"]
Judge = Literal["recogniser", "verification-subject", "verification-style", "clip", "dino"]


def _all(value: Any) -> Any:
    """Let `all` stand for None, which is not accepted itself."""
    if value is None or (isinstance(value, str) and value != "all"):
        raise ValueError("should be `all` or a list of names")
    return None if value == "all" else value


def _auto(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value != "auto"):
        raise ValueError("should be `auto` or a number of processes")
    return None if value == "auto" else value


Names = Annotated[Annotated[list[str], Field(min_length=1)] | None, BeforeValidator(_all)]
Workers = Annotated[PositiveInt | None, BeforeValidator(_auto)]


class Section(BaseModel):
    """Knobs of one kind; unknown ones are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Training(Section):
    """DreamBooth of one adapter."""

    learning_rate: PositiveFloat
    steps: PositiveInt
    batch_size: PositiveInt


class Base(Section):
    """Making a drawn world's own weights, all from artwork."""

    pictures: PositiveInt
    unet_steps: PositiveInt


class WholeBase(Base):
    """The same where nothing is another base's."""

    vae_steps: PositiveInt
    judge_steps: dict[Judge, PositiveInt]


class BackboneKnobs(Section):
    """How the base model is computed with. There is no float16 in training: its small gradients would vanish."""

    resolution: PositiveInt
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    training_dtype: Literal["auto", "float32", "bfloat16"]
    gradient_checkpointing: bool
    eight_bit_adam: bool
    offload: bool


class Bank(Section):
    """Which adapters are trained, and how. `subjects` and `styles` are None for all."""

    subjects: Names
    styles: Names
    rank: PositiveInt
    subject: Training
    style: Training


class Merger(Training):
    """Fitting coefficients by Eq. 3."""

    weight: float = Field(ge=0)
    fidelity: Fidelity
    orthogonality: Orthogonality


class Hypernet(Merger):
    """Training the hypernetwork, Algorithm 1."""

    guided: list[Literal["to_q", "to_k", "to_v", "to_out.0"]] = Field(min_length=1)
    constants: tuple[float, float]
    initial: float
    scale: PositiveFloat
    context: Literal["none", "mean", "attention"]
    clip: PositiveFloat | None
    style_prompt: str = Field(min_length=1)


class Generate(Section):
    """Sampling."""

    images_per_pair: PositiveInt
    steps: PositiveInt
    guidance: float = Field(ge=0)
    batch_size: PositiveInt


class Ranking(Section):
    """Who else ranks the methods, and by how many images of each pair."""

    images: PositiveInt
    judges: dict[str, dict[str, Any]]


class Score(Section):
    """Models that score, statistics of scores, and how closely the judge is examined."""

    judge: str
    judge_options: dict[str, Any]
    clip: str
    dino: str
    resamples: PositiveInt
    judge_questions: int | None = Field(default=None, ge=10)
    ranking: Ranking


class BaseSections(Section):
    """All sections of one base; `base` only of one that is trained here."""

    base: Base | None = None
    backbone: BackboneKnobs
    bank: Bank
    hypernet: Hypernet
    ziplora: Merger
    joint: Training
    merge: dict[str, dict[str, Any]]
    generate: Generate
    score: Score


class WholeBaseSections(BaseSections):
    """The same of a base that shares nothing with another."""

    base: WholeBase | None = None


class Evaluate(Section):
    """What is compared, and on which pairs of which division. `pairs` is None for all."""

    methods: list[str] = Field(min_length=1)
    splits: list[EvaluatedSplit] = Field(min_length=1)
    pairs: Names
    scheme: str


class Seeds(Section):
    """Added to the seed of a stage."""

    bank: int = Field(ge=0)
    hypernet: int = Field(ge=0)
    ziplora: int = Field(ge=0)
    joint: int = Field(ge=0)
    generate: int = Field(ge=0)


class Study(Section):
    """The human study, and the panel of simulated raters that exercises it."""

    methods: list[str] = Field(min_length=2)
    repeats: int = Field(ge=0)
    checks: int = Field(ge=0)
    raters: PositiveInt
    resamples: PositiveInt


class Bases(Section):
    """The worlds there are."""

    pocket: WholeBaseSections
    pocket_light: BaseSections
    sdxl: BaseSections
    koala: BaseSections


class StageResources(Section):
    """What a job of each stage that fans out asks of a cluster; two of them do so only where the truth is known."""

    bank: Resources
    hypernet: Resources
    ziplora: Resources
    joint: Resources
    generate: Resources
    judge: Resources | None = None
    score: Resources
    ranking: Resources
    quality: Resources | None = None


class BaseResources(Section):
    """The same for every world."""

    pocket: StageResources
    pocket_light: StageResources
    sdxl: StageResources
    koala: StageResources


class Params(Section):
    """All of params.yaml. `workers` is None for one per core."""

    base: str
    seed: int = Field(ge=0)
    seeds: Seeds
    executor: Executor
    workers: Workers
    evaluate: Evaluate
    follow: str
    study: Study
    bases: Bases
    resources: BaseResources

    def resources_of(self, stage: str) -> Resources:
        """What a job of a stage asks of a cluster, in the base that is worked with."""
        return getattr(getattr(self.resources, self.base), stage)

    @property
    def chosen(self) -> BaseSections:
        """The sections of the base that is worked with."""
        return getattr(self.bases, self.base)
