"""Agreement of raters, strength of methods, correlation of metrics with votes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def coincidences(units: Sequence[Sequence[int]], values: int) -> Floats:
    """Krippendorff's matrix of coincidences: pairs of values that two raters gave the same unit.

    Parameters
    ----------
    units : the values, from 0, that each unit was given; units with fewer than two are ignored.
    values : number of different values.

    Returns
    -------
    array (values, values)
    """
    matrix = np.zeros((values, values))
    for unit in units:
        if len(unit) > 1:
            counts = np.bincount(unit, minlength=values).astype(np.float64)
            matrix += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    return matrix


def krippendorff_alpha(matrix: Floats, level: Literal["nominal", "ordinal"] = "ordinal") -> float:
    """Krippendorff's alpha, 1 - D_observed / D_expected (2011, "Computing Krippendorff's Alpha-Reliability").

    Parameters
    ----------
    matrix : `coincidences`.
    level : `nominal` treats all disagreements alike; `ordinal` weighs them by the values in between.

    Returns
    -------
    float
        1 for full agreement, 0 for agreement by chance; nan if only one value was ever given.
    """
    totals = matrix.sum(axis=0)
    if level == "nominal":
        distance = 1 - np.eye(len(matrix))
    else:
        below = np.cumsum(totals) - totals / 2  # ranks, up to a constant
        distance = (below[:, None] - below) ** 2
    expected = ((np.outer(totals, totals) - np.diag(totals)) * distance).sum() / max(totals.sum() - 1, 1)
    return float(1 - (matrix * distance).sum() / expected) if expected > 0 else float("nan")


def bradley_terry(wins: Floats, limit: int = 10_000, tolerance: float = 1e-12) -> Floats:
    """Maximum-likelihood strengths p that sum to 1; i beats j with probability p_i / (p_i + p_j).

    The iteration is that of Hunter (2004, "MM algorithms for generalized Bradley-Terry models"). A method that never
    won has strength 0, the limit of its likelihood.

    Parameters
    ----------
    wins : (..., methods, methods) number of times that i beat j; a tie is half a win for each.
    limit : largest number of iterations.
    tolerance : the iteration ends when no strength changes by more.

    Returns
    -------
    array (..., methods)
    """
    games = wins + np.swapaxes(wins, -1, -2)
    won = wins.sum(axis=-1)
    strength = np.full(won.shape, 1 / won.shape[-1])
    for _ in range(limit):
        both = strength[..., :, None] + strength[..., None, :]
        played = np.divide(games, both, out=np.zeros_like(games), where=both > 0).sum(axis=-1)
        new = np.divide(won, played, out=np.zeros_like(won), where=played > 0)
        new /= np.maximum(new.sum(axis=-1, keepdims=True), 1e-300)
        change = np.abs(new - strength).max()
        strength = new
        if change < tolerance:
            break
    return strength


def comparable(wins: Floats) -> bool:
    """True if all methods were compared, directly or through others, so that they have a common scale."""
    from scipy.sparse.csgraph import connected_components

    return connected_components(wins + wins.T > 0, directed=False, return_labels=False) == 1


def correlations(first: Floats, second: Floats) -> Floats:
    """Pearson's r, Spearman's rho and Kendall's tau-b, in this order; nan if one side is constant."""
    from scipy.stats import kendalltau, rankdata

    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return np.full(3, np.nan)
    return np.array([
        np.corrcoef(first, second)[0, 1],
        np.corrcoef(rankdata(first), rankdata(second))[0, 1],
        kendalltau(first, second).statistic,
    ])  # fmt: skip
