"""Mistakes in params.yaml and in the tables: all told together, each with its line, before anything runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lorarar import pictures
from lorarar.data.catalog import Catalog
from lorarar.errors import UserError
from stages.images import refuse_twins
from stages.shared.params import load

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
MISTAKES = {
    "seed: 0 ": ("seed: none ", "seed: should be a valid integer"),
    "    - average\n": ("    - avrage\n", "evaluate.methods.1: no method is called 'avrage'; did you mean average?"),
    "pairs: all ": ("pears: all ", "evaluate.pears: no key here is called 'pears'; did you mean pairs?"),
    "subjects: all ": ("subjects: [dgo8] ", "recipes.pocket.bank.subjects.0: no subject is called 'dgo8'"),
    "styles: all\n": ("styles: [glowy]\n", "recipes.pocket.bank.styles.0: no style is called 'glowy'"),
    "rank: 16 ": ("rank: 0 ", "recipes.pocket.bank.rank: should be greater than 0, not 0"),
    "steps: 200 ": ("steps: 0 ", "recipes.pocket.bank.subject.steps: should be greater than 0, not 0"),
    "guidance: 1.5 ": ("guidance: .nan ", "recipes.pocket.generate.guidance: should be a finite number, not nan"),
}


def problems(path: Path, text: str) -> list[str]:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(path, Catalog.load(ROOT))
    return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def spoilt(*olds: str) -> str:
    text = TEXT
    for old in olds:
        assert text.count(old) >= 1, old
        text = text.replace(old, MISTAKES[old][0], 1)
    return text


def test_all_mistakes_of_one_kind_come_together_with_their_lines(tmp_path: Path) -> None:
    values = [old for old in MISTAKES if "is called" not in MISTAKES[old][1] or "key" in MISTAKES[old][1]]
    text = spoilt(*values)
    lines = problems(tmp_path / "params.yaml", text)
    for old in values:
        new, expected = MISTAKES[old]
        number = text[: text.index(new)].count("\n") + 1
        assert any(line.startswith(f"{number}: {expected}") for line in lines), (expected, lines)


def test_all_unknown_names_come_together(tmp_path: Path) -> None:
    names = [old for old in MISTAKES if "is called" in MISTAKES[old][1] and "key" not in MISTAKES[old][1]]
    text = spoilt(*names)
    lines = problems(tmp_path / "params.yaml", text)
    for old in names:
        _, expected = MISTAKES[old]
        assert any(expected in line for line in lines), (expected, lines)


def test_names_and_values_are_told_together(tmp_path: Path) -> None:
    lines = problems(tmp_path / "params.yaml", spoilt(*MISTAKES))
    for _, expected in MISTAKES.values():
        assert any(expected in line for line in lines), (expected, lines)


def test_a_base_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for base in ("pocket", "pocket_light"):
        shutil.copytree(ROOT / f"data/{base}/judges", tmp_path / f"data/{base}/judges")
    monkeypatch.chdir(tmp_path)
    (line,) = problems(tmp_path / "params.yaml", TEXT)
    assert line.startswith("2: base: data/pocket/base is not there; restore it with `git checkout data/pocket`")


def add(row: str) -> Callable[[str], str]:
    return lambda text: text.rstrip("\n") + f"\n{row}\n"


@pytest.mark.parametrize(
    ("table", "edit", "expected"),
    [
        ("subjects", lambda text: text + text.splitlines()[1] + "\n", r"subjects\.csv:35: \w+ appears twice"),
        ("subjects", lambda text: text.replace(",train,", ",both,", 1), "split 'both' is none of train, val, test"),
        ("styles", lambda text: text.replace(",test,", ",,", 1), "split is empty"),
        ("styles", lambda text: text.replace("split", "splt", 1), "no column split"),
    ],
)
def test_a_split_is_one_of_three_and_a_name_is_in_one(
    tmp_path: Path, table: str, edit: Callable[[str], str], expected: str
) -> None:
    shutil.copytree(ROOT / "data", tmp_path / "data", ignore=shutil.ignore_patterns("pocket"))
    path = tmp_path / "data" / f"{table}.csv"
    path.write_text(edit(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match=expected):
        Catalog.load(tmp_path)


def test_a_picture_under_two_names_is_refused(tmp_path: Path) -> None:
    """Whoever copies a test subject's pictures to a training subject would test on what was trained on."""
    picture = np.zeros((8, 8, 3), np.uint8)
    for name in ("subjects/dog/00.png", "subjects/dog/01.png", "styles/glowing/00.png"):
        pictures.write(tmp_path / name, picture + (name[0] == "s"))
    with pytest.raises(UserError, match=r"dog/00\.png: the same picture as .*glowing/00\.png; no picture may belong"):
        refuse_twins(tmp_path)
    pictures.write(tmp_path / "styles/glowing/00.png", picture + 2)
    refuse_twins(tmp_path)  # a subject may have a picture twice
