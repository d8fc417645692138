"""Judges answer yes or no about two pictures; the table `JUDGES` lists the classes that do so."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, Literal, Protocol, get_type_hints

from lorarar.errors import UserError, first_line
from lorarar.pictures import Picture

Kind = Literal["subject", "style"]


@dataclass(frozen=True, eq=False)
class Question:
    """A question: does the test picture show the reference's subject, or have the reference's style?

    Attributes
    ----------
    kind : subject or style.
    reference, test : the two pictures.
    style_words : words of the style for the prompt of Figure A2, such as "oil painting"; unused for a
        subject.
    """

    kind: Kind
    reference: Picture
    test: Picture
    style_words: str = ""


@dataclass(frozen=True)
class Verdict:
    """An answer.

    Attributes
    ----------
    yes : None if the judge said neither yes nor no.
    probability : of yes; None if the judge gives none.
    why : what the judge said instead of yes or no, for messages.
    """

    yes: bool | None
    probability: float | None = None
    why: str = field(default="", compare=False)


MAX_UNANSWERED = 0.5
"""Share of questions without yes or no above which a judge's silence is an error."""


class Judge(Protocol):
    """Anything that answers questions in batches, in order.

    Attributes
    ----------
    name : names the judge in results.
    identity : the name and everything else that the answers depend on, such as a fingerprint of the weights.
    prompts : wording of the questions; None for a judge that reads no prompt.
    """

    name: str

    @property
    def identity(self) -> str: ...

    @property
    def prompts(self) -> JudgePrompts | None: ...

    def answer(self, questions: Sequence[Question]) -> list[Verdict]:
        """Gives one verdict per question."""
        ...


@dataclass(frozen=True)
class JudgePrompts:
    """Wording of the two questions (Figures A1 and A2); `{image}` marks a picture, `{style}` the style's
    words. If they are `swapped`, yes means that the pictures do *not* match.
    """

    system: str
    subject: str
    style: str
    swapped: bool = False

    def __post_init__(self) -> None:
        for kind in ("subject", "style"):
            if getattr(self, kind).count("{image}") != 2:
                raise UserError(f"judge prompt for the {kind}: needs {{image}} twice, for the reference and the test")

    @classmethod
    def load(cls, path: Path | str) -> JudgePrompts:
        """Reads the section `mars2` of data/prompts.yaml.

        Raises
        ------
        UserError : the file is missing, is not YAML, or lacks a key.
        """
        try:
            section = _yaml(path)["mars2"]
            system, subject, style = (str(section[key]).strip() for key in ("system", "subject", "style"))
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: needs mars2.system, mars2.subject and mars2.style ({error!r})") from error
        return cls(system, subject, style)

    @classmethod
    def variants(cls, path: Path | str) -> dict[str, JudgePrompts]:
        """Reads the paper's wording as `paper`, and every rewording of the section `mars2_variants` by its name.

        The spread of a score over them shows how far it depends on the wording, see `statistics.spread`.

        Raises
        ------
        UserError : as `load`, or a variant lacks a key.
        """
        paper = cls.load(path)
        try:
            rewordings = {
                name: cls(paper.system, str(row["subject"]).strip(), str(row["style"]).strip(), row["swapped"] is True)
                for name, row in _yaml(path)["mars2_variants"].items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: each of mars2_variants needs swapped, subject and style ({error!r})") from error
        return {"paper": paper} | rewordings

    def text(self, question: Question) -> str:
        """User prompt of a question; `{image}` still marks the places of the pictures."""
        wording = self.subject if question.kind == "subject" else self.style
        return wording.replace("{style}", question.style_words)

    def verdict(self, yes: bool | None, probability: float | None) -> Verdict:
        """Turns an answer into a verdict on the match, its opposite if the prompts are swapped."""
        if not self.swapped:
            return Verdict(yes, probability)
        return Verdict(None if yes is None else not yes, None if probability is None else 1 - probability)


FIRST_WORD = re.compile(r"\W*(\w+)")


def read_answer(text: str) -> bool | None:
    """Reads yes or no from the first word, in any case; None for anything else."""
    match = FIRST_WORD.match(text)
    return {"yes": True, "no": False}.get(match.group(1).lower()) if match else None


def conversation(prompts: JudgePrompts, question: Question) -> list[dict]:
    """System and user turn of a question, with the pictures where the prompt has `{image}`."""
    before, between, after = prompts.text(question).split("{image}")
    return [
        {"role": "system", "content": [{"type": "text", "text": prompts.system}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": before}, {"type": "image"},
                {"type": "text", "text": between}, {"type": "image"},
                {"type": "text", "text": after},
            ],
        },
    ]  # fmt: skip


JUDGES = {
    "verification": "lorarar.scoring.judges.verification:VerificationJudge",
    "llava_onevision": "lorarar.scoring.judges.critic:LlavaCritic",
    "server": "lorarar.scoring.judges.server:ServerJudge",
}
"""Kind of judge -> the class that loads it. A folder's kind is the `model_type` of its config.json."""

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def load_judge(where: Path | str, prompts: JudgePrompts, device: str = "cpu", **options: Any) -> Judge:
    """Loads a judge of any kind.

    Parameters
    ----------
    where : a local folder, or a string with the address of a server or a LLaVA critic's name on the hub.
    prompts : wording of the questions.
    device : where a local judge runs.
    options : keyword arguments of the `load` of its class.

    Raises
    ------
    UserError : no config.json there, a kind that is not in `JUDGES`, broken weights, a server that does not answer, or
        an option that this kind does not have or that has another type.
    """
    from importlib import import_module

    from pydantic import TypeAdapter, ValidationError

    module, name = JUDGES[_kind(where)].split(":")
    load = getattr(import_module(module), name).load
    types = get_type_hints(load, include_extras=True)
    known = [key for key, value in signature(load).parameters.items() if value.kind is value.KEYWORD_ONLY]
    for option, value in options.items():
        if option not in known:
            raise UserError(f"judge {where}: has no option {option}; it has {', '.join(known) or 'none'}")
        try:
            options[option] = TypeAdapter(types[option]).validate_python(value)
        except ValidationError as error:
            raise UserError(f"judge {where}: option {option}: {error.errors()[0]['msg']}, not {value!r}") from None
    return load(where, prompts, device, **options)


def _kind(where: Path | str) -> str:
    if isinstance(where, str) and where.startswith(("http://", "https://")):
        return "server"
    if isinstance(where, str) and HUB_ID.fullmatch(where) and not Path(where).exists():
        return "llava_onevision"
    config = Path(where) / "config.json"
    try:
        model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{config}: not a judge's configuration ({error}); restore the folder from git") from error
    known = [kind for kind in JUDGES if kind != "server"]
    if model_type not in known:
        raise UserError(f"{config}: model_type {model_type!r} is no judge; known are {', '.join(known)}")
    return model_type


def _yaml(path: Path | str) -> Any:
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore it from git") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({first_line(error)}); restore it from git") from error
