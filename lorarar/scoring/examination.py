"""Accuracy of judges, CLIP and DINO on pairs of pictures whose right answer is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from lorarar.scoring.clip import Clip
from lorarar.scoring.dino import Dino
from lorarar.scoring.judges import JudgePrompts, Kind, Question
from lorarar.scoring.judges.cache import CachedJudge
from lorarar.scoring.statistics import balanced_accuracy, roc_auc, spread, wilson

Pairs = Mapping[str, npt.NDArray]
"""Columns reference, test, label, hard and words, as `Workshop.bank_pairs` gives them: `hard` says why a wrong pair is
hard, or is empty."""


def questions(kind: Kind, pairs: Pairs) -> list[Question]:
    """Questions about the pairs."""
    columns = (pairs["reference"], pairs["test"], pairs["words"].tolist())
    return [Question(kind, reference, test, words) for reference, test, words in zip(*columns, strict=True)]


def examine(judge: CachedJudge, kind: Kind, pairs: Pairs, seed: int, n: int) -> dict[str, float]:
    """Accuracy of a judge.

    Parameters
    ----------
    seed, n : seed and number of the resamplings of pairs, for the 95% intervals.

    Returns
    -------
    dict
        `balanced_accuracy`, the rates `false_yes` and `false_no`, `hard_accuracy` (share of hard wrong pairs with
        answer no) and the same for each kind of hard pair, such as `same_class_accuracy`, the numbers `n`, `n_hard`,
        `n_same_class` and so on, `unanswered` (each a wrong answer), and `auc`, the area under the ROC curve of the
        probabilities of yes, if the judge gives them.
    """
    verdicts = judge.answer(questions(kind, pairs))
    answers, chances = [verdict.yes for verdict in verdicts], [verdict.probability for verdict in verdicts]
    truth: list[bool] = pairs["label"].tolist()
    accuracy = balanced_accuracy(truth, answers)
    # Balanced accuracy is the area under the curve of answers 0 and 1.
    said = [float(label if answer is label else not label) for label, answer in zip(truth, answers, strict=True)]
    figures: dict[str, float] = roc_auc(truth, said, seed, n).named("balanced_accuracy")
    figures |= {
        "false_yes": round(accuracy.false_yes, 6),
        "false_no": round(accuracy.false_no, 6),
        "n": accuracy.n,
        "unanswered": answers.count(None),
    }
    ways = pairs["hard"].tolist()
    for name in ("hard", *sorted({*ways} - {""})):
        known_wrong = [
            answer is False for answer, way in zip(answers, ways, strict=True) if way and name in ("hard", way)
        ]
        figures[f"n_{name}"] = len(known_wrong)
        if known_wrong:
            figures |= wilson(sum(known_wrong), len(known_wrong)).named(f"{name}_accuracy")
    known = [chance for chance in chances if chance is not None]
    if len(known) == len(truth):
        figures |= roc_auc(truth, known, seed, n).named("auc")
    return figures


def similarity_auc(model: Clip | Dino, pairs: Pairs, seed: int, n: int) -> dict[str, float]:
    """Area under the ROC curve of the cosine similarity of reference and test, under `auc`; `seed` and `n` as above."""
    similarity = (model.images(list(pairs["reference"])) * model.images(list(pairs["test"]))).sum(dim=1)
    return roc_auc(pairs["label"].tolist(), similarity.tolist(), seed, n).named("auc")


def wordings(judge: CachedJudge, kind: Kind, pairs: Pairs, variants: Mapping[str, JudgePrompts]) -> dict[str, Any]:
    """Balanced accuracy on the same pairs under every wording, and its `statistics.Spread`."""
    truth: list[bool] = pairs["label"].tolist()
    by_wording = {
        name: balanced_accuracy(truth, [v.yes for v in judge.reworded(prompts).answer(questions(kind, pairs))]).balanced
        for name, prompts in variants.items()
    }
    rounded = {name: round(value, 6) for name, value in spread(by_wording)._asdict().items()}
    return rounded | {"by_wording": {name: round(value, 6) for name, value in by_wording.items()}}
