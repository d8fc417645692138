"""Results of votes: preferences, strengths, agreement, bias, raters to check, and correlation with metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from lorarar.errors import UserError
from lorarar.scoring.statistics import Interval, bootstrap_mean, wilson
from lorarar.study.preference import (
    bradley_terry,
    coincidences,
    comparable,
    correlations,
    drawn,
    interval,
    krippendorff_alpha,
)
from lorarar.study.votes import Vote

Pair = tuple[str, str]
Image = tuple[str, str, str, int]
"""Method, subject, style, number."""

METRICS = ("clip_i", "dino", "clip_t", "mars2")
PARTS = {"family_yes", *(f"{side}_{part}" for side in ("subject", "style") for part in ("yes", "prob", "unanswered"))}
"""Columns of scores that are no metrics of their own: MARS² is made of them, or they are about the judge."""


def summarise(votes: Sequence[Vote], seed: int, resamples: int) -> dict[str, Any]:
    """All figures of a table of votes, each with its interval and its sample size.

    Raters who failed a check are flagged and counted; with any, all figures come a second time without them.

    Parameters
    ----------
    votes : of real or of simulated raters, not of both.
    seed, resamples : of the intervals.
    """
    raters = [_rater(name, [vote for vote in votes if vote.rater == name]) for name in sorted({v.rater for v in votes})]
    flagged = {rater["rater"] for rater in raters if rater["flagged"]}
    scenarios: dict[str, Any] = {}
    for scenario in sorted({vote.scenario for vote in votes}, reverse=True):  # random, best
        chosen = [vote for vote in votes if vote.scenario == scenario]
        scenarios[scenario] = {"all": _figures(chosen, seed, resamples)}
        kept = [vote for vote in chosen if vote.rater not in flagged]
        if flagged and kept:
            scenarios[scenario]["without_flagged"] = _figures(kept, seed, resamples)
    return {
        "simulated": votes[0].simulated == "1",
        "n_votes": len(votes),
        "n_raters": len(raters),
        "n_flagged": len(flagged),
        "scenarios": scenarios,
        "raters": raters,
    }


def image_scores(votes: Sequence[Vote]) -> dict[Image, float]:
    """The human score of each image: the mean of 1 (better), 0 (similar) and -1 (worse) over its votes."""
    given: dict[Image, list[int]] = {}
    for vote in votes:
        if vote.kind == "pair" and vote.image_1 is not None and vote.image_2 is not None:
            first = {"1": 1, "similar": 0, "2": -1}[vote.choice]
            given.setdefault((vote.method_1, vote.subject, vote.style, vote.image_1), []).append(first)
            given.setdefault((vote.method_2, vote.subject, vote.style, vote.image_2), []).append(-first)
    return {image: float(np.mean(values)) for image, values in given.items()}


def read_metrics(folder: Path) -> dict[Image, dict[str, float]]:
    """Every metric of every image, from the tables `<method>-<split>.parquet` that the stage `score` writes.

    A column that a scorer added is a metric too.

    Raises
    ------
    UserError : there is no such table, or one is damaged.
    """
    found: dict[Image, dict[str, float]] = {}
    paths = sorted(folder.glob("*-*.parquet"))
    if not paths:
        raise UserError(f"{folder}: no tables of scores called <method>-<split>.parquet")
    for path in paths:
        method = path.stem.rpartition("-")[0]
        try:
            for row in pq.ParquetFile(path).read().to_pylist():
                image = (method, row.pop("subject"), row.pop("style"), row.pop("index"))
                values = {name: float(value) for name, value in row.items() if name not in PARTS and value is not None}
                found[image] = values | {"mars2": float(row["subject_yes"] and row["style_yes"])}
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a table of scores ({error!r}); delete it and run `dvc repro`") from None
    return found


def correlate(
    votes: Sequence[Vote], metrics: Mapping[Image, Mapping[str, float]], seed: int, resamples: int
) -> list[dict[str, Any]]:
    """Every metric against the human score, over images (section 5.1): of all methods, and of direct merge alone.

    Returns
    -------
    list
        A row for each scenario, choice of images and metric; None where one side is constant.
    """
    rows = []
    for scenario in sorted({vote.scenario for vote in votes}, reverse=True):
        scores = image_scores([vote for vote in votes if vote.scenario == scenario])
        for images in ("all", "direct"):
            pairs: dict[Pair, list[Image]] = {}
            for image in scores:
                if image in metrics and images in ("all", image[0]):
                    pairs.setdefault(image[1:3], []).append(image)
            if not pairs:
                continue
            chosen = [image for group in pairs.values() for image in group]
            names = set.intersection(*(set(metrics[image]) for image in chosen))
            for metric in [*METRICS, *sorted(names - set(METRICS))]:
                if metric not in names:
                    continue
                groups = [
                    np.array([(scores[image], metrics[image][metric]) for image in group]) for group in pairs.values()
                ]
                row = {"scenario": scenario, "images": images, "metric": metric}
                rows.append(row | {"n_images": len(chosen), "n_pairs": len(pairs)} | _three(groups, seed, resamples))
    return rows


def _three(groups: Sequence[Any], seed: int, resamples: int) -> dict[str, Any]:
    draws = drawn(len(groups), seed, resamples)
    resampled = np.array([correlations(*np.concatenate([groups[g] for g in draw]).T) for draw in draws])
    estimates = correlations(*np.concatenate(groups).T)
    figures: dict[str, Any] = {}
    for column, name in enumerate(("pearson", "spearman", "kendall")):
        figures |= _named(name, interval(estimates[column], resampled[:, column]))
    return figures


def _rater(name: str, votes: Sequence[Vote]) -> dict[str, Any]:
    checks = [vote.choice == vote.expected for vote in votes if vote.kind == "check"]
    first = {vote.question: vote.preference for vote in votes if vote.kind == "pair"}
    again = [v.preference == first[v.question] for v in votes if v.kind == "repeat" and v.question in first]
    seconds = [vote.seconds for vote in votes if vote.seconds is not None]
    return {
        "rater": name,
        "votes": len(votes),
        "checks": len(checks),
        "checks_failed": checks.count(False),
        "repeats": len(again),
        "repeats_same": sum(again),
        "option_1": sum(vote.choice == "1" for vote in votes),
        "option_2": sum(vote.choice == "2" for vote in votes),
        "median_seconds": round(median(seconds), 3) if seconds else None,
        "flagged": not all(checks),
    }


def _figures(votes: Sequence[Vote], seed: int, resamples: int) -> dict[str, Any]:
    """Figures of one scenario. Repeats and checks examine raters; they are no further votes for a method."""
    asked = [vote for vote in votes if vote.kind == "pair"]
    sides = [vote.choice for vote in votes if vote.kind != "check" and vote.choice != "similar"]
    raters = [_rater(name, [vote for vote in votes if vote.rater == name]) for name in {vote.rater for vote in votes}]
    seconds = [vote.seconds for vote in votes if vote.seconds is not None]
    figures: dict[str, Any] = {
        "n_votes": len(asked),
        "n_raters": len({vote.rater for vote in votes}),
        "n_pairs": len({(vote.subject, vote.style) for vote in asked}),
        "comparisons": [
            _comparison(methods, [vote for vote in asked if vote.methods == methods], seed, resamples)
            for methods in sorted({vote.methods for vote in asked})
        ],
        "strengths": _strengths(asked, seed, resamples),
        "agreement": _agreement(asked, seed, resamples),
        "option_1": _share(sides.count("1"), len(sides)),
        "repeats_same": _share(sum(r["repeats_same"] for r in raters), sum(r["repeats"] for r in raters)),
    }
    if len(seconds) > 1:
        low, middle, high = quantiles(seconds, n=4, method="inclusive")
        figures["seconds"] = {
            "median": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)],
            "n": len(seconds),
        }
    return figures


def _by_pair(votes: Sequence[Vote]) -> dict[Pair, list[Vote]]:
    found: dict[Pair, list[Vote]] = {}
    for vote in votes:
        found.setdefault((vote.subject, vote.style), []).append(vote)
    return found


def _comparison(methods: tuple[str, str], votes: Sequence[Vote], seed: int, resamples: int) -> dict[str, Any]:
    """Shares of votes for the first of two methods, for neither, and for the second."""
    groups = _by_pair(votes)
    outcomes = {"better": (1,), "similar": (0,), "worse": (-1,), "better_or_similar": (1, 0)}
    figures: dict[str, Any] = {"methods": list(methods), "n_votes": len(votes), "n_pairs": len(groups)}
    figures["n_raters"] = len({vote.rater for vote in votes})
    for name, wanted in outcomes.items():
        values = [[float(vote.preference in wanted) for vote in group] for group in groups.values()]
        figures |= _named(name, bootstrap_mean(values, seed, resamples))
    return figures


def _strengths(votes: Sequence[Vote], seed: int, resamples: int) -> list[dict[str, Any]] | None:
    """Bradley-Terry strengths; None where the methods have no common scale."""
    methods = sorted({method for vote in votes for method in vote.methods})
    groups = list(_by_pair(votes).values())
    wins = np.zeros((len(groups), len(methods), len(methods)))
    for number, group in enumerate(groups):
        for vote in group:
            a, b = (methods.index(method) for method in vote.methods)
            wins[number, a, b] += (1 + vote.preference) / 2
            wins[number, b, a] += (1 - vote.preference) / 2
    if not groups or not comparable(wins.sum(axis=0)):
        return None
    estimate = bradley_terry(wins.sum(axis=0))
    draws = drawn(len(groups), seed, resamples)
    resampled = bradley_terry(wins[draws].sum(axis=1), limit=1000, tolerance=1e-6)
    return [
        {"method": method, "n_votes": int(wins[:, number].sum() + wins[:, :, number].sum())}
        | _named("strength", interval(estimate[number], resampled[:, number]))
        for number, method in enumerate(methods)
    ]


def _agreement(votes: Sequence[Vote], seed: int, resamples: int) -> dict[str, Any]:
    """Krippendorff's alpha over comparisons: worse, similar, better."""
    units = []
    for group in _by_pair(votes).values():
        by_question: dict[Any, list[int]] = {}
        for vote in group:
            by_question.setdefault(vote.question, []).append(vote.preference + 1)
        units.append(list(by_question.values()))
    figures: dict[str, Any] = {"n_comparisons": sum(len(unit) > 1 for group in units for unit in group)}
    if not units:
        return figures
    matrices = np.array([coincidences(group, 3) for group in units])
    draws = drawn(len(units), seed, resamples)
    for level in ("ordinal", "nominal"):
        resampled = np.array([krippendorff_alpha(matrices[draw].sum(axis=0), level) for draw in draws])
        figures |= _named(f"alpha_{level}", interval(krippendorff_alpha(matrices.sum(axis=0), level), resampled))
    return figures


def _share(part: int, n: int) -> dict[str, Any] | None:
    return {"n": n} | _named("share", wilson(part, n)) if n else None


def _named(name: str, found: Interval) -> dict[str, float | None]:
    values = {name: found.mean, f"{name}_ci_low": found.low, f"{name}_ci_high": found.high}
    return {key: round(value, 6) if math.isfinite(value) else None for key, value in values.items()}
