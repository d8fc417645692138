"""Intervals, rates and rankings. What is alike is resampled together: `crossed` has the means over pairs."""

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
"""A sequence of values for each subject-style pair: one value per image, or only one."""


def drawn(pairs: int, seed: int, n: int) -> npt.NDArray[np.int64]:
    """(n, pairs) indices of the pairs that each of `n` resamplings draws.

    Raises
    ------
    ValueError : there are no pairs.
    """
    if pairs == 0:
        raise ValueError("every pair needs at least one value, and there is at least one pair")
    return np.random.default_rng(seed).integers(0, pairs, size=(n, pairs))


def interval(estimate: float | npt.NDArray, resampled: npt.NDArray, level: float = 0.95) -> Interval:
    """An estimate with the percentile interval of the resamplings in which it is defined; nan if it never is."""
    defined = resampled[np.isfinite(resampled)]
    if not np.isfinite(estimate) or not len(defined):
        return Interval(float(estimate), float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high))


def bootstrap_mean(values_by_pair: ByPair, seed: int, n: int = 2000, level: float = 0.95) -> Interval:
    """Mean over all values, with the percentile interval of `n` resamplings of whole pairs.

    Parameters
    ----------
    values_by_pair : as in `ByPair`.
    seed : of the resampling.
    n : number of resamplings.
    level : coverage of the interval.

    Raises
    ------
    ValueError : there are no pairs, or a pair has no values.
    """
    draws = drawn(len(values_by_pair), seed, n)
    return interval(_mean(values_by_pair), _mean(values_by_pair, draws), level)


def wilson(successes: int, n: int) -> Interval:
    """Share of successes with Wilson's 95% score interval (1927), which is valid at 0 and 1.

    Raises
    ------
    ValueError : there are no trials, or more successes than trials.
    """
    from scipy.stats import binomtest

    found = binomtest(successes, n).proportion_ci(method="wilson")
    return Interval(successes / n, float(found.low), float(found.high))


class Accuracy(NamedTuple):
    """Agreement of yes/no answers with the truth; `balanced` = 1 - (false_yes + false_no) / 2."""

    balanced: float
    false_yes: float
    false_no: float
    n: int


def balanced_accuracy(truth: Sequence[bool], answers: Sequence[bool | None]) -> Accuracy:
    """Mean of the accuracies on true and on false cases; no answer counts as a wrong one.

    Raises
    ------
    ValueError : the lengths differ, or one of the two classes is absent.
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

    The area is the Mann-Whitney statistic as a share (Hanley and McNeil 1982). Each of the `n` resamplings draws true
    and false cases separately, so that none lacks a class.

    Parameters
    ----------
    truth, scores : one entry for each case; scores are for example a judge's probabilities of yes.
    seed, n, level : as in `bootstrap_mean`.

    Raises
    ------
    ValueError : the lengths differ, or one of the two classes is absent.
    """
    cases = list(zip(truth, scores, strict=True))
    true = np.array([score for label, score in cases if label], dtype=np.float64)
    false = np.array([score for label, score in cases if not label], dtype=np.float64)
    if not len(true) or not len(false):
        raise ValueError("an area under the curve needs true and false cases")
    random = np.random.default_rng(seed)
    draws = [(random.choice(true, len(true)), random.choice(false, len(false))) for _ in range(n)]
    of_true, of_false = map(np.array, zip(*draws, strict=True))
    return interval(_area(true, false), _area(of_true, of_false), level)


def rank_agreement(scores: Mapping[str, Mapping[str, float]]) -> dict[tuple[str, str], float]:
    """Kendall's tau-b between the rankings of methods by any two seeds, judges or wordings: 1 if they agree.

    Parameters
    ----------
    scores : seed, judge or wording -> method -> score.

    Returns
    -------
    dict
        (one, another) -> tau; nan if one of them scores all methods alike.

    Raises
    ------
    ValueError : the methods differ, or there are fewer than two.
    """
    from scipy.stats import kendalltau

    methods = sorted(next(iter(scores.values()), {}))
    if len(methods) < 2 or any(sorted(row) != methods for row in scores.values()):
        raise ValueError("a ranking needs at least two methods, and another one the same methods")
    ranked = {name: [row[method] for method in methods] for name, row in scores.items()}
    return {(a, b): float(kendalltau(ranked[a], ranked[b]).statistic) for a, b in combinations(ranked, 2)}


class Spread(NamedTuple):
    """Variation of one score; `deviation` is the sample's (n - 1), `low` and `high` are the extremes."""

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
    ValueError : there are fewer than two scores.
    """
    values = list(scores.values())
    if len(values) < 2:
        raise ValueError("a spread needs at least two scores")
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)), min(values), max(values), len(values))


def _mean(values_by_pair: ByPair, draws: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.float64]:
    """Mean over all values; with `draws`, (n,) means of the resamplings."""
    sums = np.array([np.sum(np.asarray(values, dtype=np.float64)) for values in values_by_pair])
    counts = np.array([len(values) for values in values_by_pair])
    if (counts == 0).any():
        raise ValueError("every pair needs at least one value")
    if draws is not None:
        sums, counts = sums[draws], counts[draws]
    return sums.sum(axis=-1) / counts.sum(axis=-1)


def _area(true: npt.NDArray[np.float64], false: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(...) areas of (..., true cases) and (..., false cases)."""
    from scipy.stats import mannwhitneyu

    # No p-value is used; the asymptotic one is the quickest.
    wins = mannwhitneyu(true, false, axis=-1, method="asymptotic").statistic
    return wins / (true.shape[-1] * false.shape[-1])
