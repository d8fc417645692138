"""Judges answer yes or no about two pictures. One small interface; the table `JUDGES` lists who implements
it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from lorarar.errors import UserError
from lorarar.scoring.images import Image

Kind = Literal["subject", "style"]


@dataclass(frozen=True, eq=False)
class Question:
    """Does the test picture show the reference's subject, or have the reference's style?

    Attributes
    ----------
    kind : what is asked.
    reference, test : the two pictures.
    style_words : words of the style for the prompt of Figure A2, such as "oil painting"; unused for a
        subject.
    """

    kind: Kind
    reference: Image
    test: Image
    style_words: str = ""


@dataclass(frozen=True)
class Verdict:
    """An answer: `yes` is None where the judge said neither; `probability` of yes, where the judge gives
    one.
    """

    yes: bool | None
    probability: float | None = None


class Judge(Protocol):
    """Anything that answers questions in batches, in order; `name` says in results who judged."""

    name: str

    def answer(self, questions: Sequence[Question]) -> list[Verdict]:
        """One verdict per question."""
        ...


@dataclass(frozen=True)
class JudgePrompts:
    """Wording of the two questions (Figures A1 and A2); `{image}` marks a picture, `{style}` the style's
    words.
    """

    system: str
    subject: str
    style: str

    def __post_init__(self) -> None:
        for kind in ("subject", "style"):
            if getattr(self, kind).count("{image}") != 2:
                raise UserError(f"judge prompt for the {kind}: needs {{image}} twice, for the reference and the test")

    @classmethod
    def load(cls, path: Path | str) -> JudgePrompts:
        """Read the section `mars2` of data/prompts.yaml.

        Raises
        ------
        UserError : the file is missing, is not YAML, or lacks a key.
        """
        import yaml

        try:
            section = yaml.safe_load(Path(path).read_text(encoding="utf-8"))["mars2"]
            return cls(**{key: str(section[key]).strip() for key in ("system", "subject", "style")})
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); restore it from git") from error
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise UserError(f"{path}: needs mars2.system, mars2.subject and mars2.style ({error!r})") from error

    def text(self, question: Question) -> str:
        """The user prompt of a question, with `{image}` still marking the places of the pictures."""
        wording = self.subject if question.kind == "subject" else self.style
        return wording.replace("{style}", question.style_words)


JUDGES = {
    "verification": "lorarar.scoring.judges.verification:VerificationJudge",
    "llava_onevision": "lorarar.scoring.judges.critic:LlavaCritic",
}
"""`model_type` of a judge's config.json -> the class that loads it."""


def load_judge(folder: Path | str, prompts: JudgePrompts, device: str = "cpu") -> Judge:
    """Load the judge in a local folder, whichever kind it is.

    Raises
    ------
    UserError : no config.json there, a kind that is not in `JUDGES`, or broken weights.
    """
    from importlib import import_module

    config = Path(folder) / "config.json"
    try:
        model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError) as error:
        raise UserError(f"{config}: not a judge's configuration ({error}); restore the folder from git") from error
    if model_type not in JUDGES:
        raise UserError(f"{config}: model_type {model_type!r} is no judge; known are {', '.join(JUDGES)}")
    module, name = JUDGES[model_type].split(":")
    return getattr(import_module(module), name).load(folder, prompts, device)
