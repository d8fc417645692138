"""Intervals for subjects crossed with styles: both are samples, and an image depends on both.

Images of a pair are alike, and so are pairs of one subject or of one style. The variance of a mean is therefore that of
both factors together, V_subjects + V_styles - V_pairs, each the sum of squared totals of residuals (Cameron, Gelbach
and Miller 2011, doi 10.1198/jbes.2010.07136), and the interval is Student's, with Satterthwaite's degrees of freedom.
`tests/scoring/test_crossed.py` measures the coverage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lorarar.scoring.statistics import Interval

ByPair = Mapping[tuple[str, str], Sequence[float]] | Mapping[tuple[str, str], Sequence[bool]]
"""(subject, style) -> a value for each image of the pair, or only one."""


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of two means, and how sure it is.

    Attributes
    ----------
    error : standard error; nan if there is only one pair.
    freedom : degrees of freedom.
    least, most : no interval reaches beyond them: the extremes of the values.
    """

    mean: float
    error: float
    freedom: float
    least: float
    most: float

    def interval(self, level: float = 0.95) -> Interval:
        """The interval; all that the values allow if there is only one pair."""
        from scipy.stats import t

        half = t.ppf((1 + level) / 2, self.freedom) * self.error if self.error == self.error else inf
        return Interval(self.mean, max(self.mean - half, self.least), min(self.mean + half, self.most))

    @property
    def p(self) -> float:
        """Two-sided p-value of the hypothesis that the true value is 0; nan if there is only one pair."""
        from scipy.stats import t

        if self.error == 0:
            return 0.0 if self.mean else 1.0
        return float(2 * t.sf(abs(self.mean) / self.error, self.freedom))


def mean(values: ByPair) -> Estimate:
    """Mean over all values.

    Raises
    ------
    ValueError : there are no pairs, or a pair has no values.
    """
    centre, residuals = _residuals(values)
    return _estimate(centre, values, residuals, *_extremes(values))


def difference(first: ByPair, second: ByPair) -> Estimate:
    """Mean of `first` minus mean of `second`, of two methods on the same pairs: what makes a pair hard cancels.

    Raises
    ------
    ValueError : there are no pairs, a pair has no values, or the pairs differ.
    """
    if first.keys() != second.keys():
        raise ValueError(f"{len(first)} pairs of one method and {len(second)} of the other, not the same ones")
    (ours, residuals), (theirs, others) = _residuals(first), _residuals({pair: second[pair] for pair in first})
    (least, most), (low, high) = _extremes(first), _extremes(second)
    return _estimate(ours - theirs, first, residuals - others, least - high, most - low)


class Components(NamedTuple):
    """Variance of one image's value, by what it comes from; an estimate below 0 stands for 0."""

    subject: float
    style: float
    pair: float  # beyond its subject's and its style's
    image: float

    def variance(self, subjects: int, styles: int, pairs: int, images: int) -> float:
        """Variance of the mean over so many subjects, styles and pairs, with so many images of each pair."""
        least = [max(part, 0.0) for part in self]
        counts = (subjects, styles, pairs, pairs * images)
        return sum(part / count for part, count in zip(least, counts, strict=True))


def components(values: ByPair) -> Components:
    """Where the variance of one image's value comes from, without bias for any choice of pairs.

    Half the mean squared difference of two values estimates their variance apart from what they share: within a pair
    that of images alone, within a subject all but the subject's, and so on.
    """
    sums = np.array([np.sum(np.asarray(of, dtype=np.float64)) for of in values.values()])
    squares = np.array([np.sum(np.asarray(of, dtype=np.float64) ** 2) for of in values.values()])
    counts = np.array([len(of) for of in values.values()], dtype=np.float64)

    def half(groups: npt.NDArray[np.int64]) -> tuple[float, float]:
        """Half the sum of squared differences of all ordered twos in the same group, and their number."""
        n, total, square = (np.bincount(groups, of) for of in (counts, sums, squares))
        return float((n * square - total**2).sum()), float((n**2 - n).sum())

    subjects, styles = (np.unique(names, return_inverse=True)[1] for names in zip(*values, strict=True))
    cell, one, other, every = map(half, (np.arange(len(sums)), subjects, styles, np.zeros(len(sums), np.int64)))

    def mean_of(*parts: tuple[float, tuple[float, float]]) -> float:
        amount, number = (sum(sign * part[k] for sign, part in parts) for k in (0, 1))
        return amount / number if number > 0 else nan

    image = mean_of((1, cell))
    same_subject, same_style = mean_of((1, one), (-1, cell)), mean_of((1, other), (-1, cell))
    apart = mean_of((1, every), (-1, one), (-1, other), (1, cell))
    subject, style = apart - same_subject, apart - same_style
    return Components(subject, style, apart - subject - style - image, image)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): at most a share p of such families has a wrong one."""
    adjusted, largest = [nan] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = largest
    return adjusted


def best_set(right: Mapping[str, ByPair], level: float = 0.05) -> list[str]:
    """The method with the highest mean, and all that are not worse than it at `level`, by Holm's correction."""
    means = {method: mean(values).mean for method, values in right.items()}
    best = max(means, key=lambda method: means[method])
    others = [method for method in right if method != best]
    ps = holm([difference(right[best], right[method]).p for method in others])
    worse = {method for method, p in zip(others, ps, strict=True) if p < level}
    return [method for method in right if method not in worse]


def _residuals(values: ByPair) -> tuple[float, npt.NDArray[np.float64]]:
    """The mean, and by how much each pair moves it: (n_p m_p - n_p m) / N."""
    sums = np.array([np.sum(np.asarray(of, dtype=np.float64)) for of in values.values()])
    counts = np.array([len(of) for of in values.values()])
    if not len(counts) or (counts == 0).any():
        raise ValueError("every pair needs at least one value, and there is at least one pair")
    centre = sums.sum() / counts.sum()
    return float(centre), (sums - centre * counts) / counts.sum()


def _estimate(centre: float, values: ByPair, residuals: npt.NDArray[np.float64], least: float, most: float) -> Estimate:
    pairs = len(residuals)
    if pairs == 1:
        return Estimate(centre, nan, nan, least, most)
    of_pairs = float((residuals**2).sum()) * pairs / (pairs - 1)
    parts = []  # variance from each factor, and its degrees of freedom
    for names in zip(*values, strict=True):
        _, place = np.unique(names, return_inverse=True)
        number = int(place.max()) + 1
        if number > 1:
            totals = np.bincount(place, residuals)
            parts.append((float((totals**2).sum()) * number / (number - 1), number - 1))
    variance = max(sum(part for part, _ in parts) - of_pairs, of_pairs)
    spread = sum(part**2 / freedom for part, freedom in parts)
    freedom = min(variance**2 / spread if spread else inf, pairs - 1)
    return Estimate(centre, sqrt(variance), max(freedom, 1.0), least, most)


def _extremes(values: ByPair) -> tuple[float, float]:
    flat = [float(value) for of in values.values() for value in of]
    return min(flat), max(flat)
