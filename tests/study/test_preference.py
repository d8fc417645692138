"""Agreement and strengths equal independent libraries' and published values."""

from __future__ import annotations

import choix
import krippendorff
import numpy as np
import pytest
from scipy.stats import kendalltau, pearsonr, spearmanr

from lorarar.study.preference import bradley_terry, coincidences, comparable, correlations, krippendorff_alpha

# Krippendorff (2011), section E's reliability data: four observers, twelve units, values 1 to 5, some missing (0).
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]


def test_alpha_is_the_published_one() -> None:
    units = [[row[unit] - 1 for row in PUBLISHED if row[unit]] for unit in range(12)]
    matrix = coincidences(units, 5)
    assert krippendorff_alpha(matrix, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(matrix, "ordinal") == pytest.approx(0.815, abs=5e-4)


@pytest.mark.parametrize("level", ["nominal", "ordinal"])
@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_the_library_s(level, seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, 30)
    table = np.where(random.random((6, 30)) < 0.5, truth, random.integers(0, 3, (6, 30))).astype(float)
    table[random.random(table.shape) < 0.2] = np.nan
    units = [[int(value) for value in column if not np.isnan(value)] for column in table.T]
    expected = krippendorff.alpha(reliability_data=table, level_of_measurement=level)
    assert krippendorff_alpha(coincidences(units, 3), level) == pytest.approx(expected, abs=1e-12)


def test_alpha_of_one_value_alone_is_not_defined() -> None:
    assert np.isnan(krippendorff_alpha(coincidences([[1, 1], [1, 1, 1]], 3)))
    assert krippendorff_alpha(coincidences([[0, 0], [2, 2, 2]], 3)) == 1


@pytest.mark.parametrize("seed", range(5))
def test_strengths_are_the_library_s(seed: int) -> None:
    wins = np.random.default_rng(seed).integers(1, 20, (4, 4)) / 2
    np.fill_diagonal(wins, 0)
    expected = np.exp(choix.ilsr_pairwise_dense(wins))
    assert bradley_terry(wins) == pytest.approx(expected / expected.sum(), abs=1e-8)


def test_strengths_of_two_are_their_shares_and_ties_are_half_wins() -> None:
    assert bradley_terry(np.array([[0, 30.0], [10, 0]])) == pytest.approx([0.75, 0.25])
    assert bradley_terry(np.array([[[0, 5.0], [5, 0]], [[0, 4.0], [0, 0]]])) == pytest.approx(
        np.array([[0.5, 0.5], [1, 0]])
    )


def test_methods_that_never_met_have_no_common_scale() -> None:
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[2, 3] = 1
    assert not comparable(wins)
    wins[1, 2] = 1
    assert comparable(wins)


def test_correlations_are_scipy_s() -> None:
    first, second = np.random.default_rng(0).integers(0, 6, (2, 40)).astype(float)
    expected = [test(first, second).statistic for test in (pearsonr, spearmanr, kendalltau)]
    assert correlations(first, second) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(correlations(first, np.ones(40))).all()
