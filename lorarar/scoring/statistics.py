"""Intervals and rates. Images of one subject-style pair are not independent, so pairs are what is
resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Interval(NamedTuple):
    """An estimate with the two ends of its interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    values_by_pair: Sequence[Sequence[float]] | Sequence[npt.NDArray],
    seed: int,
    n: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Mean over all values, with the percentile interval of `n` resamplings of whole pairs.

    Parameters
    ----------
    values_by_pair : one sequence of values (one per image, or a single one) for every subject-style pair.
    seed : of the resampling.
    n : number of resamplings.
    level : coverage of the interval.

    Raises
    ------
    ValueError : no pair, or a pair without values.
    """
    sums = np.array([np.sum(np.asarray(values, dtype=np.float64)) for values in values_by_pair])
    counts = np.array([len(values) for values in values_by_pair])
    if len(counts) == 0 or (counts == 0).any():
        raise ValueError("every pair needs at least one value")
    drawn = np.random.default_rng(seed).integers(0, len(sums), size=(n, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))


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
    """How well yes/no answers agree with the truth; `balanced` = 1 - (false_yes + false_no) / 2."""

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
