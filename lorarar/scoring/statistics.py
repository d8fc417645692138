"""Intervals, rates and rankings. Images of one subject-style pair are not independent, so pairs are what is
resampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Interval(NamedTuple):
    """An estimate with the two ends of its interval."""

    mean: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """The estimate under `name` and its ends under `<name>_ci_low` and `<name>_ci_high`, with six decimals."""
        return {
            name: round(self.mean, 6),
            f"{name}_ci_low": round(self.low, 6),
            f"{name}_ci_high": round(self.high, 6),
        }


ByPair = Sequence[Sequence[float]] | Sequence[npt.NDArray]
"""One sequence of values (one per image, or a single one) for every subject-style pair."""


def bootstrap_mean(
    values_by_pair: ByPair,
    seed: int,
    n: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Mean over all values, with the percentile interval of `n` resamplings of whole pairs.

    Parameters
    ----------
    values_by_pair : as `ByPair`.
    seed : of the resampling.
    n : number of resamplings.
    level : coverage of the interval.

    Raises
    ------
    ValueError : no pair, or a pair without values.
    """
    drawn = _drawn(len(values_by_pair), seed, n)
    return _interval(_mean(values_by_pair), _mean(values_by_pair, drawn), level)


def paired_difference(first: ByPair, second: ByPair, seed: int, n: int = 2000, level: float = 0.95) -> Interval:
    """Mean of `first` less mean of `second`, with the percentile interval of `n` resamplings of whole pairs.

    Both methods were asked for the same pairs, and each resampling draws the same ones for both: what makes a pair
    hard then cancels, and the interval is narrower than two separate ones suggest.

    Parameters
    ----------
    first, second : values of two methods for the same pairs in the same order; as `ByPair`.
    seed, n, level : as in `bootstrap_mean`.

    Raises
    ------
    ValueError : no pair, a pair without values, or not as many pairs of one as of the other.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} pairs of one method and {len(second)} of the other")
    drawn = _drawn(len(first), seed, n)
    return _interval(_mean(first) - _mean(second), _mean(first, drawn) - _mean(second, drawn), level)


def wilson(successes: int, n: int, z: float = 1.959963984540054) -> Interval:
    """Share of successes with Wilson's score interval (1927), which behaves at 0 and 1."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes in {n} trials")
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # The ends are exact where all or none succeed; rounding would leave them a hair inside.
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return Interval(share, low, high)


class Accuracy(NamedTuple):
    """Agreement of yes/no answers with the truth; `balanced` = 1 - (false_yes + false_no) / 2."""

    balanced: float
    false_yes: float
    false_no: float
    n: int


def balanced_accuracy(truth: Sequence[bool], answers: Sequence[bool | None]) -> Accuracy:
    """Mean of the accuracies on true and on false cases; an unanswered question is a wrong answer to either.

    Raises
    ------
    ValueError : lengths differ, or one of the two classes is absent.
    """
    cases = list(zip(truth, answers, strict=True))
    on_false = [answer is not False for label, answer in cases if not label]
    on_true = [answer is not True for label, answer in cases if label]
    if not on_false or not on_true:
        raise ValueError("balanced accuracy needs true and false cases")
    false_yes, false_no = float(np.mean(on_false)), float(np.mean(on_true))
    return Accuracy(1 - (false_yes + false_no) / 2, false_yes, false_no, len(cases))


def roc_auc(truth: Sequence[bool], scores: Sequence[float], seed: int, n: int = 2000, level: float = 0.95) -> Interval:
    """Area under the ROC curve: the chance that a true case scores above a false one, ties counting half.

    It is the Mann-Whitney statistic as a share (Hanley and McNeil 1982). The interval is of `n` resamplings that draw
    true and false cases separately, so that none is without either.

    Parameters
    ----------
    truth, scores : of each case; a judge's probabilities of yes, for one.
    seed, n, level : as in `bootstrap_mean`.

    Raises
    ------
    ValueError : lengths differ, or one of the two classes is absent.
    """
    cases = list(zip(truth, scores, strict=True))
    true = np.array([score for label, score in cases if label], dtype=np.float64)
    false = np.array([score for label, score in cases if not label], dtype=np.float64)
    if not len(true) or not len(false):
        raise ValueError("an area under the curve needs true and false cases")
    random = np.random.default_rng(seed)
    areas = [_area(random.choice(true, len(true)), random.choice(false, len(false))) for _ in range(n)]
    return _interval(_area(true, false), np.array(areas), level)


def rank_agreement(scores: Mapping[str, Mapping[str, float]]) -> dict[tuple[str, str], float]:
    """Kendall's tau-b between the rankings of methods by every two seeds, judges or wordings: 1 if all agree.

    Parameters
    ----------
    scores : seed, judge or wording -> method -> score.

    Returns
    -------
    dict
        (one, another) -> tau; nan where one of them scores all methods alike.

    Raises
    ------
    ValueError : they do not score the same methods, or fewer than two.
    """
    from scipy.stats import kendalltau

    methods = sorted(next(iter(scores.values()), {}))
    if len(methods) < 2 or any(sorted(row) != methods for row in scores.values()):
        raise ValueError("a ranking needs at least two methods, and another one the same methods")
    ranked = {name: [row[method] for method in methods] for name, row in scores.items()}
    return {(a, b): float(kendalltau(ranked[a], ranked[b]).statistic) for a, b in combinations(ranked, 2)}


class Spread(NamedTuple):
    """Spread of one score; `deviation` is the sample's (n - 1), `low` and `high` are the extremes."""

    mean: float
    deviation: float
    low: float
    high: float
    n: int


def spread(scores: Mapping[str, float]) -> Spread:
    """Spread of one score over wordings, seeds or judges.

    Parameters
    ----------
    scores : wording, seed or judge -> score.

    Raises
    ------
    ValueError : fewer than two, which have no spread.
    """
    values = list(scores.values())
    if len(values) < 2:
        raise ValueError("a spread needs at least two scores")
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)), min(values), max(values), len(values))


def _drawn(pairs: int, seed: int, n: int) -> npt.NDArray[np.int64]:
    """(n, pairs) which pairs each resampling draws."""
    if pairs == 0:
        raise ValueError("every pair needs at least one value, and there is at least one pair")
    return np.random.default_rng(seed).integers(0, pairs, size=(n, pairs))


def _mean(values_by_pair: ByPair, drawn: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.float64]:
    """Mean over all values; with `drawn`, (n,) means of the resamplings."""
    sums = np.array([np.sum(np.asarray(values, dtype=np.float64)) for values in values_by_pair])
    counts = np.array([len(values) for values in values_by_pair])
    if (counts == 0).any():
        raise ValueError("every pair needs at least one value")
    if drawn is not None:
        sums, counts = sums[drawn], counts[drawn]
    return sums.sum(axis=-1) / counts.sum(axis=-1)


def _interval(estimate: float | npt.NDArray, resampled: npt.NDArray, level: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high))


def _area(true: npt.NDArray[np.float64], false: npt.NDArray[np.float64]) -> float:
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([true, false]))
    wins = ranks[: len(true)].sum() - len(true) * (len(true) + 1) / 2
    return float(wins / (len(true) * len(false)))
