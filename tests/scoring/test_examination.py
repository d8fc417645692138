"""A judge is examined on pairs whose answer is known: here tiny pictures, and judges that are told what to say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lorarar.scoring.examination import examine, questions, similarity_auc, wordings
from lorarar.scoring.judges import JudgePrompts, Verdict
from lorarar.scoring.judges.cache import CachedJudge
from lorarar.scoring.statistics import balanced_accuracy

WORDS = JudgePrompts("be kind", "same? {image} {image}", "in {style}? {image} {image}")
TRUTH = [True] * 4 + [False] * 6
HARD = [""] * 7 + ["same_family", "recoloured", "same_family"]


def pairs() -> dict[str, np.ndarray]:
    """Ten pairs; the test picture of the i-th is of brightness i, so that a judge can be told what to say of it."""
    return {
        "reference": np.zeros((10, 2, 2, 3), np.uint8),
        "test": np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], (10, 2, 2, 3)),
        "label": np.array(TRUTH),
        "hard": np.array(HARD),
        "words": np.array(["oil"] * 10),
    }


class Told:
    """Says what it was told of the i-th pair; asked in swapped words, it does not notice that they are."""

    name = identity = "told"

    def __init__(self, answers, chances=None, prompts=None):
        self.verdicts = [Verdict(*both) for both in zip(answers, chances or [None] * len(answers), strict=True)]
        self.prompts = prompts

    def answer(self, questions):
        told = [self.verdicts[int(question.test[0, 0, 0])] for question in questions]
        return [self.prompts.verdict(v.yes, v.probability) for v in told] if self.prompts else told


def test_errors_and_hard_pairs_are_counted_apart(tmp_path: Path) -> None:
    answers = [True, True, True, None, False, False, False, True, None, False]
    found = examine(CachedJudge(Told(answers), tmp_path, quiet=True), "style", pairs(), seed=0, n=200)
    expected = balanced_accuracy(TRUTH, answers)
    assert found["balanced_accuracy"] == pytest.approx(expected.balanced, abs=1e-6)
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 4 / 6) / 2, abs=1e-6)
    assert found["balanced_accuracy_ci_low"] < found["balanced_accuracy"] < found["balanced_accuracy_ci_high"]
    assert (found["false_no"], found["false_yes"]) == pytest.approx((1 / 4, 2 / 6), abs=1e-6)
    assert (found["n"], found["n_hard"], found["unanswered"]) == (10, 3, 2)
    assert found["hard_accuracy"] == pytest.approx(1 / 3, abs=1e-6)
    assert (found["n_same_family"], found["same_family_accuracy"]) == (2, 0.5)
    assert (found["n_recoloured"], found["recoloured_accuracy"]) == (1, 0.0)
    assert 0 < found["hard_accuracy_ci_low"] < 1 / 3 < found["hard_accuracy_ci_high"] < 1
    assert "auc" not in found, "there are no probabilities"


def test_probabilities_may_know_more_than_answers(tmp_path: Path) -> None:
    # It never says yes, and yet every right pair is more probable to it than any wrong one.
    chances = [0.4] * 4 + [0.1] * 6
    found = examine(CachedJudge(Told([False] * 10, chances), tmp_path, quiet=True), "style", pairs(), seed=0, n=50)
    assert (found["balanced_accuracy"], found["auc"]) == (0.5, 1.0)


def test_similarity_is_measured_on_the_same_pairs() -> None:
    class Angles:
        """Feature of a picture: the direction at its brightness, tenths of a right angle from black."""

        def images(self, images):
            angle = torch.tensor([float(image[0, 0, 0]) for image in images]) * np.pi / 20
            return torch.stack([angle.cos(), angle.sin()], dim=1)

    found = similarity_auc(Angles(), pairs(), seed=0, n=50)
    assert found == {"auc": 1.0, "auc_ci_low": 1.0, "auc_ci_high": 1.0}, "the right pairs are the four darkest"
    assert similarity_auc(Angles(), pairs() | {"label": ~np.array(TRUTH)}, seed=0, n=50)["auc"] == 0.0


def test_a_judge_that_does_not_read_its_prompt_is_found_out_by_swapped_wordings(tmp_path: Path) -> None:
    swapped = JudgePrompts("be kind", "other? {image} {image}", "not {style}? {image} {image}", swapped=True)
    judge = CachedJudge(Told(TRUTH, prompts=WORDS), tmp_path, quiet=True)
    found = wordings(judge, "style", pairs(), {"paper": WORDS, "swapped": swapped})
    assert found["by_wording"] == {"paper": 1.0, "swapped": 0.0}
    assert (found["mean"], found["low"], found["high"], found["n"]) == (0.5, 0.0, 1.0, 2)
    assert judge.prompts is WORDS and judge.judge.prompts is WORDS, "the judge itself keeps its words"


def test_the_words_of_the_style_reach_the_prompt() -> None:
    assert {WORDS.text(question) for question in questions("style", pairs())} == {"in oil? {image} {image}"}
