"""The stage study: without votes, with votes, and with votes that cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lorarar.data.catalog import Catalog
from lorarar.errors import UserError
from lorarar.scoring import score_table
from lorarar.study.votes import Vote, write_csv
from stages import study
from stages.shared.context import Context, code_of
from stages.shared.params import load

ROOT = Path(__file__).parents[2]


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A repository with scores of two methods and no panel: none of study.methods is evaluated."""
    monkeypatch.chdir(ROOT)  # where params.yaml finds the shipped models
    for name in ("data/study", "data/paper_results.yaml", "dvc.yaml", *code_of("study")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    catalog = Catalog.load(ROOT)
    params = load(ROOT / "params.yaml", catalog)
    monkeypatch.chdir(tmp_path)
    for method in ("direct", "ziplora"):
        rows = [
            score_table.Row(
                subject, "glowing", 0, method == "direct", True, 0.5, 0.5, 0, 0, True, 0.1 * place, 0.2, 0.3
            )
            for place, subject in enumerate(("can", "dog8", "cat2"))
        ]
        score_table.write(tmp_path / "artifacts/pocket/score" / f"{method}-test.parquet", rows)
    evaluate = params.evaluate.model_copy(update={"methods": ["truth"]})
    return Context(params.model_copy(update={"evaluate": evaluate}), catalog)


def results(kind: str) -> str:
    return Path(f"results/pocket/study/{kind}/results.md").read_text(encoding="utf-8")


def votes(**changes: str) -> list[Vote]:
    return [
        Vote.model_validate(
            {
                "rater": rater, "subject": subject, "style": "glowing", "method_1": "direct", "method_2": "ziplora",
                "choice": "1", "image_1": 0, "image_2": 0,
            } | changes
        )
        for rater in ("ann", "bob")
        for subject in ("can", "dog8", "cat2")
    ]  # fmt: skip


def test_without_votes_it_says_so_and_carries_on(context: Context, capsys: pytest.CaptureFixture) -> None:
    study.main(context)
    assert "no ratings collected" in capsys.readouterr().out
    assert "No ratings collected" in results("ratings")
    assert "fewer than two of study.methods" in results("simulated")


def test_votes_of_people_are_correlated_beside_the_paper(context: Context) -> None:
    write_csv(study.VOTES, votes())
    study.main(context)
    text = results("ratings")
    assert "imulated" not in text and "# What 2 raters prefer" in text
    assert "| MARS² | random | all methods | 1.00 [1.00, 1.00] | 1.00" in text and "| 6 | 3 | 0.76 |" in text
    first = {path: path.read_bytes() for path in Path("results").rglob("*") if path.is_file()}
    study.main(context)
    assert first == {path: path.read_bytes() for path in Path("results").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method_2": "magic"}, "'magic', which is no method"),
        ({"subject": "unicorn"}, "'unicorn', which is no subject"),
        ({"style": "plain"}, "'plain', which is no style"),
    ],
)
def test_votes_on_what_does_not_exist_are_refused(context: Context, changes: dict[str, str], expected: str) -> None:
    rows = votes(**changes)
    write_csv(study.VOTES, list({(vote.rater, vote.subject): vote for vote in rows}.values()))
    with pytest.raises(UserError, match=f"votes.csv: ann votes on {expected}"):
        study.main(context)
