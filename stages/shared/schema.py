"""Sections of params.yaml that more than one place names: their keys and types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt

from lorarar.training.objective import Fidelity, Orthogonality

EvaluatedSplit = Literal["val", "test"]
Judge = Literal["recogniser", "verification-subject", "verification-style", "clip", "dino"]


def _all(value: Any) -> Any:
    """Turn `all` into None, which is not accepted itself."""
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
    """Settings of one kind; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Training(Section):
    """DreamBooth of one adapter."""

    learning_rate: PositiveFloat
    steps: PositiveInt
    batch_size: PositiveInt


class DrawnBase(Section):
    """Training of a drawn world's base from artwork. A base with all four keys has its own VAE and judges."""

    pictures: PositiveInt
    unet_steps: PositiveInt
    vae_steps: PositiveInt | None = None
    judge_steps: dict[Judge, PositiveInt] | None = None


class Base(Section):
    """A world: its recipe and, if it is drawn, the training of its base."""

    recipe: str
    base: DrawnBase | None = None


class BackboneKnobs(Section):
    """How the base model computes. Training has no float16: its small gradients would vanish."""

    resolution: PositiveInt
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    training_dtype: Literal["auto", "float32", "bfloat16"]
    gradient_checkpointing: bool
    eight_bit_adam: bool
    offload: bool


class Bank(Section):
    """The adapters that are trained, and how. `subjects` and `styles` are None for all."""

    subjects: Names
    styles: Names
    rank: PositiveInt
    subject: Training
    style: Training


class Merger(Training):
    """Fitting of coefficients by Eq. 3."""

    weight: float = Field(ge=0)
    fidelity: Fidelity
    orthogonality: Orthogonality


class Hypernet(Merger):
    """Training of the hypernetwork, Algorithm 1."""

    guided: list[Literal["to_q", "to_k", "to_v", "to_out.0"]] = Field(min_length=1)
    constants: tuple[float, float]
    initial: float
    scale: PositiveFloat
    context: Literal["none", "mean", "attention"]
    clip: PositiveFloat | None
    style_prompt: str = Field(min_length=1)


TRAINED_KNOBS: dict[str, type[Training]] = {"hypernet": Hypernet, "ziplora": Merger, "joint": Training}
"""Sections of a recipe for the rows of stages/shared/trained.py."""


class Generate(Section):
    """Sampling."""

    images_per_pair: PositiveInt
    steps: PositiveInt
    guidance: float = Field(ge=0)
    batch_size: PositiveInt


class Ranking(Section):
    """Further judges that rank the methods, and the number of images of each pair that they see."""

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


class Sample(Section):
    """A balanced sample of the pairs of each split; the same for all methods."""

    pairs: PositiveInt
    seed: int = Field(ge=0)


class Evaluate(Section):
    """The methods and pairs that are compared, and their division. `pairs` and `sample` are None for all."""

    methods: list[str] = Field(min_length=1)
    splits: list[EvaluatedSplit] = Field(min_length=1)
    pairs: Names
    sample: Sample | None = None
    scheme: str


class Study(Section):
    """The human study, and the panel of simulated raters that exercises it."""

    methods: list[str] = Field(min_length=2)
    repeats: int = Field(ge=0)
    checks: int = Field(ge=0)
    raters: PositiveInt
    resamples: PositiveInt
