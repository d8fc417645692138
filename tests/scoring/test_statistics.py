"""Intervals and rates against formulas written out, and hand-computed tables."""

import math

import numpy as np
import pytest

from lorarar.scoring.statistics import balanced_accuracy, bootstrap_mean, wilson


def test_bootstrap_resamples_pairs_as_a_loop_would():
    values = [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]
    got = bootstrap_mean(values, seed=3, n=500)
    drawn = np.random.default_rng(3).integers(0, 4, size=(500, 4))
    means = [np.mean([value for pair in row for value in values[pair]]) for row in drawn]
    assert got.mean == pytest.approx(6 / 12)
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_bootstrap_weighs_every_image_alike_when_pairs_differ_in_size():
    assert bootstrap_mean([[1.0], [0.0, 0.0, 0.0]], seed=0).mean == 0.25


def test_bootstrap_sees_that_images_of_a_pair_are_not_independent():
    together = bootstrap_mean([[1] * 100, [0] * 100] * 3, seed=0)
    apart = bootstrap_mean([[value] for value in [1, 0] * 300], seed=0)
    assert together.high - together.low > 3 * (apart.high - apart.low)


def test_bootstrap_is_repeatable_and_refuses_nothing():
    values = np.random.default_rng(0).random((5, 4)).tolist()
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_mean([], seed=0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_mean([[1.0], []], seed=0)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (7, 10), (10, 10), (81, 263)])
def test_wilson_ends_are_where_the_score_test_just_rejects(successes, n):
    share, low, high = wilson(successes, n)
    assert share == successes / n
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(1.96, abs=1e-3)
    assert low <= share <= high
    assert (low == 0) == (successes == 0)


def test_balanced_accuracy_of_a_hand_counted_table():
    truth = [True] * 4 + [False] * 10
    answers = [True, True, True, False] + [False] * 8 + [True, None]
    got = balanced_accuracy(truth, answers)
    assert got.false_no == 0.25
    assert got.false_yes == 0.2
    assert got.balanced == pytest.approx((0.75 + 0.8) / 2)
    assert got.n == 14


def test_balanced_accuracy_counts_silence_as_wrong_and_needs_both_classes():
    assert balanced_accuracy([True, False], [None, None]).balanced == 0
    with pytest.raises(ValueError, match="true and false"):
        balanced_accuracy([True, True], [True, True])
