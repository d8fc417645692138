"""Whether a ranking holds: views of the same images, and their table."""

from __future__ import annotations

from dataclasses import replace
from math import isnan

import pytest

from lorarar.report import ranking
from lorarar.report.tables import Provenance
from lorarar.scoring.score_table import Row

PROVENANCE = Provenance("pocket", 0, "1a", "2b", "3c", "verification")
ROW = Row("dog8", "glowing", 0, True, True, 0.9, 0.5, 0, 0, True, 0.5, 0.4, 0.3)


def rows(*right: str) -> list[Row]:
    """Of each pair a string: one character for every image, + where it is right."""
    return [
        replace(ROW, subject=f"subject{pair}", index=index, subject_yes=mark == "+")
        for pair, marks in enumerate(right)
        for index, mark in enumerate(marks)
    ]


METHODS = {"direct": rows("+-", "--"), "ziplora": rows("++", "-+"), "lorarar": rows("++", "--")}


def test_headline_is_the_share_of_right_images() -> None:
    view = ranking.headline(METHODS)
    assert view.scores == {"direct": 0.25, "ziplora": 0.75, "lorarar": 0.5} and view.images == 4


def test_a_seed_is_the_images_of_one_place_in_all_pairs() -> None:
    first, second = ranking.by_seed(METHODS)
    assert first.scores == {"direct": 0.5, "ziplora": 0.5, "lorarar": 0.5} and first.images == 2
    assert second.scores == {"direct": 0.0, "ziplora": 1.0, "lorarar": 0.5}
    assert isnan(ranking.agreement(ranking.headline(METHODS), first))
    assert ranking.agreement(ranking.headline(METHODS), second) == pytest.approx(1)


def test_other_scores_leave_out_what_is_not_known_of_all_images() -> None:
    soft, similarity = ranking.other_scores(METHODS)
    assert soft.scores["direct"] == pytest.approx(0.9 * 0.5) and similarity.scores["direct"] == pytest.approx(0.5 * 0.4)
    unknown = METHODS | {"direct": [replace(row, style_prob=None) for row in METHODS["direct"]]}
    assert [view.name for view in ranking.other_scores(unknown)] == ["CLIP-I x DINO"]


def test_the_table_has_each_view_with_its_tau_and_sums_groups_up() -> None:
    views = [
        ranking.View("wording", "paper", {"direct": 0.2, "ziplora": 0.8, "lorarar": 0.5}, 4),
        ranking.View("wording", "swapped", {"direct": 0.9, "ziplora": 0.1, "lorarar": 0.5}, 4),
        *ranking.by_seed(METHODS),
    ]
    text = str(ranking.ranking_table(ranking.headline(METHODS), views, "test", {}, PROVENANCE))
    assert "| **MARS² average** | 0.25 | 0.75 | 0.50 |  | 4 |" in text
    assert "| wording: paper | 0.20 | 0.80 | 0.50 | 1.00 | 4 |" in text
    assert "| wording: swapped | 0.90 | 0.10 | 0.50 | -1.00 | 4 |" in text
    assert "| seed: 0 | 0.50 | 0.50 | 0.50 |  | 2 |" in text
    assert "in other words: tau 0.00 on average, -1.00 at least; ZipLoRA is ahead in 1 of 2." in text
    assert "Direct merge 0.55 (0.49; 0.20 to 0.90)" in text
    assert "reads no words" not in text and str(PROVENANCE) in text


def test_a_judge_without_words_is_named() -> None:
    views = ranking.by_seed(METHODS)
    text = str(ranking.ranking_table(ranking.headline(METHODS), views, "val", {"judge": "verification"}, PROVENANCE))
    assert "The judge `verification` reads no words" in text
