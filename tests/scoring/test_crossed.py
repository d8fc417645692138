"""Intervals over subjects and styles: against plain formulas, and how often they hold the truth."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats

from lorarar.scoring import crossed

PAIRS = list(product("abcde", "vwxyz"))


def test_the_variance_is_that_of_subjects_and_of_styles_without_what_both_count():
    values = dict(zip(PAIRS, np.random.default_rng(0).random((25, 3)).tolist(), strict=True))
    got = crossed.mean(values)
    flat = np.array([values[pair] for pair in PAIRS]).reshape(5, 5, 3)
    assert got.mean == pytest.approx(flat.mean())
    residuals = (flat - flat.mean()).sum(2) / flat.size
    subjects, styles = (5 / 4 * (residuals.sum(axis) ** 2).sum() for axis in (1, 0))
    pairs = 25 / 24 * (residuals**2).sum()
    variance = max(subjects + styles - pairs, pairs)
    freedom = min(variance**2 / (subjects**2 / 4 + styles**2 / 4), 24)
    assert got.error == pytest.approx(math.sqrt(variance)) and got.freedom == pytest.approx(freedom)
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    assert got.interval() == pytest.approx((got.mean, got.mean - half, got.mean + half))


def test_of_one_subject_it_is_students_interval_over_the_styles():
    values = {("a", style): [value] for style, value in zip("vwxyz", (0.1, 0.4, 0.2, 0.9, 0.5), strict=True)}
    usual = scipy.stats.ttest_1samp([of[0] for of in values.values()], 0)
    low, high = usual.confidence_interval(0.9)
    assert crossed.mean(values).interval(0.9) == pytest.approx((0.42, max(low, 0.1), min(high, 0.9)))
    assert crossed.mean(values).p == pytest.approx(usual.pvalue)


def truth(mean, spreads, seed, subjects, styles, pairs, images):
    """Shares of right images on a logistic scale, and the share in the population; pairs lie on diagonals."""
    random = np.random.default_rng(seed)
    grid = [(a, (a + step) % styles) for a in range(subjects) for step in range(pairs // subjects)]
    a, b = np.array(grid).T
    of_a, of_b, of_pair = (
        random.standard_normal(n) * s for n, s in zip((subjects, styles, pairs), spreads, strict=True)
    )
    chances = 1 / (1 + np.exp(-(mean + of_a[a] + of_b[b] + of_pair)))
    rights = random.random((pairs, images)) < chances[:, None]
    return {(str(x), str(y)): row.tolist() for (x, y), row in zip(grid, rights, strict=True)}


@pytest.mark.parametrize("size", [(20, 20, 200, 4), (16, 16, 128, 4), (20, 20, 400, 4)])
@pytest.mark.parametrize(("mean", "spreads"), [(0, (0.5, 1.5, 1)), (-2, (1, 1, 1)), (0, (0.2, 0.2, 2))])
def test_intervals_of_95_percent_hold_the_truth_in_93_to_97(size, mean, spreads):
    """With 400 repetitions chance alone moves the count by 2.2 points; the bounds of a pass are 2 of these wider."""
    everyone = np.random.default_rng(0).standard_normal((400_000, 3)) @ np.array(spreads)
    expected = (1 / (1 + np.exp(-(mean + everyone)))).mean()
    held = []
    for seed in range(400):
        low, high = crossed.mean(truth(mean, spreads, seed, *size)).interval()[1:]
        held.append(low <= expected <= high)
    assert 0.91 <= np.mean(held) <= 0.985


def test_resampling_pairs_would_have_been_too_narrow():
    """The interval that stood here before held the truth in half of the cases."""
    from lorarar.scoring.statistics import bootstrap_mean

    expected, held = 0.5, []
    for seed in range(60):
        _, low, high = bootstrap_mean(list(truth(0, (0.5, 1.5, 1), seed, 20, 20, 200, 4).values()), seed=seed, n=200)
        held.append(low <= expected <= high)
    assert np.mean(held) < 0.8


def test_a_difference_forgets_what_is_hard_for_both():
    hard = np.random.default_rng(0).random(25)
    better, worse = ({p: [h + more] for p, h in zip(PAIRS, hard, strict=True)} for more in (0.1, 0.0))
    got = crossed.difference(better, worse)
    assert got.interval() == pytest.approx((0.1, 0.1, 0.1)) and got.p < 1e-9
    alone = crossed.mean(better).interval()
    assert alone.high - alone.low > 0.1
    assert crossed.difference(worse, better).mean == pytest.approx(-0.1)
    with pytest.raises(ValueError, match="25 pairs of one method and 1"):
        crossed.difference(better, {("a", "v"): [1.0]})


def test_what_cannot_be_known_is_all_that_is_possible():
    got = crossed.mean({("a", "v"): [0, 1, 1]})
    assert got.interval() == pytest.approx((2 / 3, 0, 1)) and math.isnan(got.p)
    same = crossed.mean({pair: [value] * 2 for pair, value in zip(PAIRS, [1] * 25, strict=True)})
    assert same.interval() == (1, 1, 1)
    with pytest.raises(ValueError, match="at least one"):
        crossed.mean({})
    with pytest.raises(ValueError, match="at least one"):
        crossed.mean({("a", "v"): []})


def test_holms_correction_of_a_hand_computed_family():
    assert crossed.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert crossed.holm([0.5, 0.9]) == [1.0, 1.0] and crossed.holm([]) == []


def test_the_best_set_holds_the_best_and_what_is_not_known_to_be_worse():
    random = np.random.default_rng(0)
    of = {name: {p: (random.random(20) < share).tolist() for p in PAIRS} for name, share in
          {"good": 0.6, "alike": 0.59, "bad": 0.2}.items()}  # fmt: skip
    assert crossed.best_set(of) == ["good", "alike"]


@pytest.mark.parametrize("pairs", [400, 200])
def test_components_are_found_whatever_pairs_are_chosen(pairs):
    sizes, found = (0.5, 0.8, 0.3, 0.7), []
    for seed in range(60):
        random = np.random.default_rng(seed)
        a, b = random.standard_normal((2, 20)) * np.array(sizes[:2])[:, None]
        grid = [(i, (i + step) % 20) for i in range(20) for step in range(pairs // 20)]
        centre = [a[i] + b[j] + random.standard_normal() * sizes[2] for i, j in grid]
        values = {(f"{i}", f"{j}"): (c + random.standard_normal(4) * sizes[3]).tolist()
                  for (i, j), c in zip(grid, centre, strict=True)}  # fmt: skip
        found.append(crossed.components(values))
    assert np.mean(found, axis=0) == pytest.approx(np.square(sizes), rel=0.12)


def test_components_of_a_grid_are_those_of_the_analysis_of_variance():
    flat = np.random.default_rng(0).random((5, 5, 3)) + np.arange(5)[:, None, None]
    got = crossed.components({pair: row.tolist() for pair, row in zip(PAIRS, flat.reshape(25, 3), strict=True)})
    means, rows, columns = flat.mean(2), flat.mean((1, 2)), flat.mean((0, 2))
    image = ((flat - means[..., None]) ** 2).sum() / (25 * 2)
    between = 3 * ((means - rows[:, None] - columns + flat.mean()) ** 2).sum() / 16
    of_rows, of_columns = (15 * ((of - flat.mean()) ** 2).sum() / 4 for of in (rows, columns))
    expected = ((of_rows - between) / 15, (of_columns - between) / 15, (between - image) / 3, image)
    assert got == pytest.approx(expected)
    assert got.variance(5, 5, 25, 3) == pytest.approx(
        got.subject / 5 + max(got.style, 0) / 5 + max(got.pair, 0) / 25 + image / 75
    )
