"""Votes as a table: exported by the server, brought by labs, read by the analysis. See data/study/README.md."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lorarar.errors import UserError
from lorarar.files import atomic
from lorarar.study import Scenario
from lorarar.study.manifest import Study

Choice = Literal["1", "similar", "2"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")]


class Vote(BaseModel):
    """One answer of one rater. `method_1` made the image called *Option 1*.

    Attributes
    ----------
    image_1, image_2 : numbers of the images among those of their method and pair; None if they are not known.
    kind : `repeat` is a comparison that the rater had answered before, `check` one whose answer `expected` is known.
    seconds : time from when both images were visible until the answer.
    time : time of the answer, ISO 8601 in UTC.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rater: Name
    subject: Name
    style: Name
    method_1: Name
    method_2: Name
    choice: Choice
    image_1: int | None = Field(None, ge=0)
    image_2: int | None = Field(None, ge=0)
    scenario: Scenario = "random"
    kind: Literal["pair", "repeat", "check"] = "pair"
    expected: Literal["1", "2"] | None = None
    seconds: float | None = Field(None, ge=0)
    time: str = Field("", max_length=40)
    simulated: Literal["0", "1"] = "0"

    @model_validator(mode="after")
    def _sensible(self) -> Vote:
        if self.kind != "check" and self.method_1 == self.method_2:
            raise ValueError(f"method_1 and method_2 are both {self.method_1}")
        if (self.kind == "check") != (self.expected is not None):
            raise ValueError("expected belongs to checks, and every check has it")
        return self

    @property
    def methods(self) -> tuple[str, str]:
        """The two methods in the order of their names."""
        return (self.method_1, self.method_2) if self.method_1 <= self.method_2 else (self.method_2, self.method_1)

    @property
    def preference(self) -> int:
        """1 if the first of `methods` is better, -1 if the second is, 0 if they are similar."""
        seen = {"1": 1, "similar": 0, "2": -1}[self.choice]
        return seen if self.method_1 == self.methods[0] else -seen

    @property
    def question(self) -> tuple[Any, ...]:
        """The comparison, without the sides of the images."""
        sides = sorted([(self.method_1, self.image_1 or 0), (self.method_2, self.image_2 or 0)])
        return (self.scenario, self.subject, self.style, *sides)


COLUMNS = list(Vote.model_fields)
REQUIRED = [name for name, field in Vote.model_fields.items() if field.is_required()]


def write_csv(path: Path, votes: Iterable[Vote]) -> None:
    """Write votes as CSV; unknown values are empty."""
    with atomic(path) as temporary:
        temporary.write_text(as_csv(votes), encoding="utf-8", newline="")


def as_csv(votes: Iterable[Vote]) -> str:
    """Votes as CSV."""
    # As objects, numbers of images stay integers next to values that are not known.
    table = pd.DataFrame([vote.model_dump() for vote in votes], columns=COLUMNS, dtype=object)
    return table.to_csv(index=False, lineterminator="\n")


def as_json(votes: Iterable[Vote]) -> str:
    """Votes as a JSON list of objects."""
    return json.dumps([vote.model_dump() for vote in votes], indent=1) + "\n"


def read_csv(path: Path | str) -> list[Vote]:
    """Read a table of votes from here or from elsewhere.

    Raises
    ------
    UserError : the file is not such a table; the message names the line and the column.
    """
    try:  # not by pandas, which does not tell the line of a row
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="(too many values)", restval="", strict=True)
            header = list(reader.fieldnames or [])
            _check_header(path, header)
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV table in UTF-8 ({error})") from None
    votes: list[Vote] = []
    seen: dict[tuple[Any, ...], int] = {}
    simulated: dict[str, int] = {}
    for line, row in rows:
        try:
            vote = Vote.model_validate({name: value for name, value in row.items() if value != ""})
        except ValidationError as error:
            raise UserError(f"{path}:{line}: {_explain(error)}") from None
        # A comparison is asked once, and so is its repeat; but two checks of one pair may show different images.
        key = (vote.rater, vote.kind, *vote.question) if vote.kind != "check" else (line,)
        if key in seen:
            raise UserError(f"{path}:{line}: {vote.rater} has answered this on line {seen[key]}; keep one of the two")
        seen[key] = line
        simulated.setdefault(vote.simulated, line)
        votes.append(vote)
    if not votes:
        raise UserError(f"{path}: no votes in it")
    if len(simulated) > 1:
        raise UserError(f"{path}:{max(simulated.values())}: votes of simulated and of real raters; keep them apart")
    return votes


def _check_header(path: Path | str, header: Sequence[str]) -> None:
    for name in header:
        if name not in COLUMNS:
            raise UserError(f"{path}: unknown column {name!r}; known: {', '.join(COLUMNS)}")
        if header.count(name) > 1:
            raise UserError(f"{path}: the column {name} appears twice; take one out")
    if missing := [name for name in REQUIRED if name not in header]:
        raise UserError(f"{path}: no column {', '.join(missing)}; add it")


def check_against(path: Path | str, votes: Sequence[Vote], study: Study) -> None:
    """Check that a study contains the comparisons that were answered.

    Raises
    ------
    UserError : a vote is about a comparison that the study does not have.
    """
    asked = {
        (study.manifest.scenario, item.subject, item.style, frozenset(option.method for option in item.options))
        for item in study.manifest.items
        if item.kind == "pair"
    }
    for vote in votes:
        if vote.kind != "check" and (vote.scenario, vote.subject, vote.style, frozenset(vote.methods)) not in asked:
            what = f"{vote.method_1} and {vote.method_2} on {vote.subject}+{vote.style} ({vote.scenario})"
            raise UserError(f"{path}: {vote.rater} compares {what}, which {study.folder} does not")


def _explain(error: ValidationError) -> str:
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if problem["type"] == "missing":
        return f"{problem['loc'][0]} is empty; fill it in"
    return f"{problem['loc'][0]}: {message}, not {problem['input']!r}" if problem["loc"] else message
