"""Kept verdicts: nothing is asked twice, nothing that differs is taken for the same, nothing answered is lost."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lorarar.errors import UserError
from lorarar.scoring.judges import JudgePrompts, Question, Verdict
from lorarar.scoring.judges.cache import CachedJudge

ROOT = Path(__file__).parents[2]
PROMPTS = JudgePrompts("be kind", "same subject? {image} {image}", "in {style}? {image} {image}")


class Teller:
    """Says yes to bright pictures; remembers questions, and fails at the `fail_at`-th."""

    def __init__(self, identity="teller 1", prompts=PROMPTS, fail_at=None, answers=None):
        self.name = "teller"
        self.identity = identity
        self.prompts = prompts
        self.fail_at = fail_at
        self.answers = answers
        self.max_unanswered = 0.5
        self.asked = []

    def answer(self, questions):
        verdicts = []
        for question in questions:
            if len(self.asked) == self.fail_at:
                raise UserError("the judge has gone")
            self.asked.append(question)
            share = float(question.test.mean()) / 255
            verdicts.append(self.answers or Verdict(share > 0.5, share))
        return verdicts


def questions(number=5, kind="style"):
    return [
        Question(kind, np.full((2, 3, 3), 9, np.uint8), np.full((2, 3, 3), 40 * i, np.uint8), "oil")
        for i in range(number)
    ]


def test_only_new_questions_are_asked_and_answers_stay_in_order(tmp_path):
    first, second = Teller(), Teller()
    expected = Teller().answer(questions(6))
    assert CachedJudge(first, tmp_path).answer(questions(4)) == expected[:4]
    mixed = [questions(6)[i] for i in (5, 0, 4, 1, 5)]
    assert CachedJudge(second, tmp_path).answer(mixed) == [expected[i] for i in (5, 0, 4, 1, 5)]
    assert [int(question.test[0, 0, 0]) for question in second.asked] == [200, 160]
    third = Teller()
    assert CachedJudge(third, tmp_path).answer(questions(6)) == expected and not third.asked
    assert CachedJudge(third, tmp_path).answer([]) == []


def test_whatever_an_answer_depends_on_makes_another_question(tmp_path):
    [question] = questions(1)
    CachedJudge(Teller(), tmp_path).answer([question])

    def asks_again(question=question, **options):
        teller = Teller(**options)
        CachedJudge(teller, tmp_path).answer([question])
        return bool(teller.asked)

    assert not asks_again()
    assert asks_again(identity="teller 2")
    assert asks_again(prompts=replace(PROMPTS, system="be strict"))
    assert asks_again(prompts=replace(PROMPTS, style="{style}? {image} {image}"))
    assert asks_again(prompts=replace(PROMPTS, swapped=True))
    assert asks_again(prompts=None)
    assert not asks_again(prompts=replace(PROMPTS, subject="whose? {image} {image}"))
    for change in (
        {"style_words": "glowing"},
        {"kind": "subject"},
        {"reference": question.test},
        {"test": question.test + np.uint8(1)},
        {"test": question.test.reshape(3, 2, 3)},
    ):
        assert asks_again(replace(question, **change)), change


def test_style_words_make_no_difference_to_a_question_about_the_subject(tmp_path):
    teller = Teller()
    judge = CachedJudge(teller, tmp_path)
    [question] = questions(1, kind="subject")
    judge.answer([question, replace(question, style_words="glowing")])
    assert len(teller.asked) == 1


def test_what_was_answered_before_a_failure_is_kept(tmp_path):
    with pytest.raises(UserError, match="gone"):
        CachedJudge(Teller(fail_at=4), tmp_path, batch_size=2).answer(questions(6))
    teller = Teller()
    assert len(CachedJudge(teller, tmp_path, batch_size=2).answer(questions(6))) == 6
    assert len(teller.asked) == 2


def test_what_was_answered_before_a_kill_is_kept(tmp_path):
    script = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
from test_cache import CachedJudge, Teller, questions
class Killed(Teller):
    def answer(self, questions):
        if len(self.asked) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(questions)
CachedJudge(Killed(), {str(tmp_path)!r}, batch_size=2).answer(questions(6))
"""
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -9
    teller = Teller()
    CachedJudge(teller, tmp_path).answer(questions(6))
    assert len(teller.asked) == 2


def test_unanswered_questions_are_asked_again(tmp_path):
    silent = Teller(answers=Verdict(None, 0.4))
    silent.max_unanswered = 1.0
    assert CachedJudge(silent, tmp_path).answer(questions(2)) == [Verdict(None, 0.4)] * 2
    teller = Teller()
    CachedJudge(teller, tmp_path).answer(questions(2))
    assert len(teller.asked) == 2


def test_a_judge_that_does_not_answer_is_an_error_after_its_first_questions(tmp_path):
    silent = Teller(answers=Verdict(None, why="text 'Hm.'"))
    asked = [replace(question, style_words=f"oil {i}") for i in range(8) for question in questions()]
    with pytest.raises(UserError, match=r"teller: neither yes nor no to 8 of the first 8 questions \(text 'Hm\.'\)"):
        CachedJudge(silent, tmp_path).answer(asked)
    assert len(silent.asked) == 8


def test_the_share_of_unanswered_questions_can_be_set_and_counts_known_answers(tmp_path):
    CachedJudge(Teller(), tmp_path).answer(questions(3))
    silent = Teller(answers=Verdict(None))
    assert [v.yes is None for v in CachedJudge(silent, tmp_path).answer(questions(5))] == [False] * 3 + [True] * 2
    silent.max_unanswered = 0.3
    with pytest.raises(UserError, match="2 of the first 5 questions"):
        CachedJudge(silent, tmp_path).answer(questions(5))


def test_a_damaged_file_costs_its_question_only(tmp_path):
    CachedJudge(Teller(), tmp_path).answer(questions(4))
    files = sorted(tmp_path.rglob("*.json"))
    assert len(files) == 4
    for file, content in zip(files, ("", '{"yes": tr', '{"no": 1}'), strict=False):
        file.write_text(content)
    teller = Teller()
    assert CachedJudge(teller, tmp_path).answer(questions(4)) == Teller().answer(questions(4))
    assert len(teller.asked) == 3


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot keep verdicts"):
        CachedJudge(Teller(), tmp_path / "file" / "cache")
