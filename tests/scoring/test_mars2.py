"""MARS² arithmetic against tables computed by hand, and which question goes to the judge."""

import numpy as np
import pytest

from lorarar.scoring.judges import Question, Verdict
from lorarar.scoring.mars2 import Rating, Side, pair_attempts, rate


def side(*answers):
    return Side(tuple(Verdict(answer) for answer in answers))


@pytest.mark.parametrize(
    ("answers", "yes"),
    [
        ([True], True),
        ([False], False),
        ([None], False),
        ([True, False], False),
        ([True, True, False], True),
        ([True, True, False, False], False),
        ([True, True, True, False], True),
        ([True, True, None, None], False),
        ([True, True, None, False, True], True),
    ],
)
def test_strict_majority_of_the_references(answers, yes):
    assert side(*answers).yes is yes


def test_an_image_is_right_only_if_both_sides_are():
    right, wrong = side(True), side(False)
    assert [Rating(a, b).right for a in (right, wrong) for b in (right, wrong)] == [True, False, False, False]


def test_soft_score_and_unanswered():
    mixed = Side((Verdict(True, 0.9), Verdict(None, 0.5), Verdict(False, None)))
    assert mixed.probability == pytest.approx(0.7)
    assert mixed.unanswered == 1
    assert side(True).probability is None


RIGHT = [
    [True, False, False, True],  # first image right
    [False, False, True, False],  # third
    [False, False, False, False],  # never: counts as a fifth draw
    [False, True, True, True],  # second
]


def test_attempts_of_a_hand_computed_table():
    assert [pair_attempts(pair) for pair in RIGHT] == [1, 3, 5, 2]


class Corner:
    """Says yes to a subject if the first pixels' red agrees, to a style if their green does."""

    name = "corner"

    def __init__(self):
        self.asked = []

    def answer(self, questions):
        self.asked += questions
        channel = {"subject": 0, "style": 1}
        return [Verdict(bool(q.reference[0, 0, channel[q.kind]] == q.test[0, 0, channel[q.kind]])) for q in questions]


def picture(red, green):
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, 0] = red, green, 0
    return image


def test_every_image_is_asked_about_with_every_reference_and_answers_return_to_their_image():
    judge = Corner()
    tests = [picture(1, 7), picture(2, 7), picture(1, 0)]
    subject_references = [picture(1, 50), picture(1, 51), picture(2, 52)]
    ratings = rate(judge, tests, subject_references, [picture(99, 7)], "oil painting")
    assert [(r.subject.yes, r.style.yes, r.right) for r in ratings] == [
        (True, True, True),
        (False, True, False),
        (True, False, False),
    ]
    assert len(judge.asked) == 3 * 3 + 3
    assert {q.style_words for q in judge.asked if q.kind == "style"} == {"oil painting"}
    assert all(isinstance(q, Question) for q in judge.asked)


def test_references_are_required():
    with pytest.raises(ValueError, match="at least one reference"):
        rate(Corner(), [picture(1, 1)], [], [picture(1, 1)], "oil")
