"""Tables of votes from elsewhere: what is understood, and what is refused with line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorarar.errors import UserError
from lorarar.study.votes import COLUMNS, Vote, check_against, read_csv, write_csv

ROOT = Path(__file__).parents[2]
HEADER = "rater,subject,style,method_1,method_2,choice"
ROW = "ann,can,glowing,direct,ziplora,1"


def test_six_columns_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text(f"\ufeff{HEADER}\r\n{ROW}\r\nann,can,sticker,ziplora,direct,similar\r\n", encoding="utf-8")
    first, second = read_csv(path)
    assert (first.choice, first.scenario, first.kind, first.simulated) == ("1", "random", "pair", "0")
    assert first.image_1 is None and (first.preference, second.preference) == (1, 0)


def test_all_columns_survive_the_disk_and_are_documented(tmp_path: Path) -> None:
    vote = Vote(
        rater="ann", subject="can", style="glowing", method_1="ziplora", method_2="direct", choice="2", image_1=3,
        image_2=0, scenario="best", kind="check", expected="2", seconds=4.25, time="2025-01-01T00:00:00", simulated="1",
    )  # fmt: skip
    write_csv(tmp_path / "votes.csv", [vote])
    assert read_csv(tmp_path / "votes.csv") == [vote]
    documented = (ROOT / "data/study/README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in documented for name in COLUMNS)


def test_a_preference_is_for_a_method_not_a_side() -> None:
    def preference(first: str, second: str, choice: str) -> int:
        return Vote(rater="a", subject="s", style="t", method_1=first, method_2=second, choice=choice).preference

    assert preference("direct", "ziplora", "1") == preference("ziplora", "direct", "2") == 1
    assert preference("direct", "ziplora", "2") == preference("ziplora", "direct", "1") == -1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no column rater, subject"),
        (HEADER, "no votes in it"),
        (HEADER.replace("choice", "answer"), "unknown column 'answer'"),
        (HEADER.replace(",choice", ""), "no column choice; add it"),
        (f"{HEADER}\nann,can,glowing,direct,ziplora,left", "choice: should be '1', 'similar' or '2', not 'left'"),
        (f"{HEADER}\n{ROW}\nbob,can,glowing,direct,ziplora", "votes.csv:3: choice is empty"),
        (f"{HEADER}\n{ROW},more", "votes.csv:2: (too many values)"),
        (f"{HEADER}\nann,../can,glowing,direct,ziplora,1", "votes.csv:2: subject: "),
        (f"{HEADER}\nann,can,glowing,direct,direct,1", "votes.csv:2: method_1 and method_2 are both direct"),
        (f"{HEADER}\n{ROW}\nann,can,glowing,ziplora,direct,2", "votes.csv:3: ann has answered this on line 2"),
        (f"{HEADER},kind\n{ROW},check", "votes.csv:2: expected belongs to checks"),
        (f"{HEADER},seconds\n{ROW},-1", "votes.csv:2: seconds: "),
        (f"{HEADER},seconds\n{ROW},nan", "votes.csv:2: seconds: "),
        (f"{HEADER},simulated\n{ROW},0\nbob,can,glowing,direct,ziplora,1,1", "votes.csv:3: votes of simulated and"),
        ("\xff\xfe", "not a CSV table in UTF-8"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "votes.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read_csv(path)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_votes_must_be_for_what_a_study_asked(tmp_path: Path, study) -> None:
    def vote(**changes: str) -> Vote:
        row = dict(zip(HEADER.split(","), ROW.split(","), strict=True)) | changes
        return Vote.model_validate(row)

    check_against("votes.csv", [vote()], study)
    for changes in ({"method_2": "magic"}, {"subject": "vase"}, {"scenario": "best"}):
        with pytest.raises(UserError, match=r"votes\.csv: ann compares .* does not"):
            check_against("votes.csv", [vote(), vote(**changes)], study)
