"""Intervals and rates against formulas written out, and hand-computed tables."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats

from lorarar.scoring.statistics import (
    Interval,
    balanced_accuracy,
    bootstrap_mean,
    rank_agreement,
    roc_auc,
    spread,
    wilson,
)


def test_bootstrap_resamples_pairs_as_a_loop_would():
    values = [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]
    got = bootstrap_mean(values, seed=3, n=500)
    drawn = np.random.default_rng(3).integers(0, 4, size=(500, 4))
    means = [np.mean([value for pair in row for value in values[pair]]) for row in drawn]
    assert got.mean == pytest.approx(6 / 12)
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_an_interval_is_written_as_three_flat_figures():
    expected = {"dino": 0.333333, "dino_ci_low": 0.1, "dino_ci_high": 0.5}
    assert Interval(1 / 3, 0.1, 0.5).named("dino") == expected


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


def test_roc_auc_is_the_share_of_cases_in_the_right_order_ties_half():
    random = np.random.default_rng(1)
    truth = random.random(60) < 0.4
    scores = np.round(random.random(60) + 0.3 * truth, 1)
    true, false = scores[truth], scores[~truth]
    naive = np.mean([(a > b) + 0.5 * (a == b) for a, b in product(true, false)])
    got = roc_auc(truth.tolist(), scores.tolist(), seed=0)
    assert got.mean == pytest.approx(naive)
    assert got.mean == pytest.approx(scipy.stats.mannwhitneyu(true, false).statistic / (len(true) * len(false)))
    assert 0 <= got.low < got.mean < got.high <= 1
    assert got == roc_auc(truth.tolist(), scores.tolist(), seed=0)


def test_roc_auc_of_perfect_useless_and_inverted_scores():
    truth = [True, True, False, False]
    assert roc_auc(truth, [0.9, 0.8, 0.2, 0.1], seed=0) == (1, 1, 1)
    assert roc_auc(truth, [0.1, 0.2, 0.8, 0.9], seed=0) == (0, 0, 0)
    assert roc_auc(truth, [0.5] * 4, seed=0) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="true and false"):
        roc_auc([True, True], [0.1, 0.2], seed=0)


def test_roc_auc_interval_covers_the_truth_about_as_often_as_it_says():
    # Normal scores a distance d apart have the area Phi(d / sqrt 2).
    area = scipy.stats.norm.cdf(1 / math.sqrt(2))
    truth = [True] * 40 + [False] * 40
    covered = 0
    for seed in range(40):
        scores = np.random.default_rng(seed).normal(size=80) + np.array(truth)
        _, low, high = roc_auc(truth, scores.tolist(), seed=seed, n=200)
        covered += low <= area <= high
    assert covered >= 34


def test_rank_agreement_is_kendalls_tau_of_every_two_rankings():
    scores = {
        "seed 0": {"lorarar": 0.7, "ziplora": 0.5, "direct": 0.4, "ties": 0.4},
        "seed 1": {"direct": 0.3, "ties": 0.2, "lorarar": 0.9, "ziplora": 0.6},
        "seed 2": {"lorarar": 0.1, "ziplora": 0.2, "direct": 0.3, "ties": 0.4},
    }
    got = rank_agreement(scores)
    assert list(got) == [("seed 0", "seed 1"), ("seed 0", "seed 2"), ("seed 1", "seed 2")]
    # tau-b by hand: concordant less discordant, over the root of the untied numbers of both.
    for (a, b), tau in got.items():
        signs = [
            np.sign(scores[a][x] - scores[a][y]) * np.sign(scores[b][x] - scores[b][y])
            for x, y in product(scores[a], repeat=2)
        ]
        untied = [sum(scores[c][x] != scores[c][y] for x, y in product(scores[a], repeat=2)) for c in (a, b)]
        assert tau == pytest.approx(sum(signs) / math.sqrt(untied[0] * untied[1]))
    assert got["seed 1", "seed 2"] == pytest.approx(-1)


def test_rank_agreement_of_equal_opposite_and_flat_rankings():
    up = {"a": 1.0, "b": 2.0, "c": 3.0}
    down, flat = {"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}
    got = rank_agreement({"up": up, "again": up, "down": down, "flat": flat})
    assert got["up", "again"] == pytest.approx(1) and got["up", "down"] == pytest.approx(-1)
    assert math.isnan(got["up", "flat"])
    with pytest.raises(ValueError, match="same methods"):
        rank_agreement({"x": up, "y": {"a": 1.0, "b": 2.0}})
    with pytest.raises(ValueError, match="at least two"):
        rank_agreement({"x": {"a": 1.0}, "y": {"a": 1.0}})


def test_spread_of_a_hand_computed_table():
    got = spread({"paper": 0.5, "plain": 0.7, "brief": 0.6})
    assert got == pytest.approx((0.6, 0.1, 0.5, 0.7, 3))
    with pytest.raises(ValueError, match="at least two"):
        spread({"paper": 0.5})
