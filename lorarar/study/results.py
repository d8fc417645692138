"""Figures of votes: preferences, strengths, agreement, bias, doubtful raters, and correlation with metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lorarar.errors import UserError
from lorarar.scoring.score_table import damaged, load
from lorarar.scoring.statistics import Interval, bootstrap_mean, drawn, interval, wilson
from lorarar.study.preference import bradley_terry, coincidences, comparable, correlations, krippendorff_alpha
from lorarar.study.votes import Vote

PAIR = ["subject", "style"]
IMAGE = ["method", *PAIR, "index"]
METRICS = ("clip_i", "dino", "clip_t", "mars2")
PARTS = ["family_yes", *(f"{side}_{part}" for side in PAIR for part in ("yes", "prob", "unanswered"))]
"""Columns of scores that are not metrics: MARS² is made of them, or they are about the judge."""


def summarise(votes: Sequence[Vote], seed: int, resamples: int) -> dict[str, Any]:
    """All figures of a table of votes, each with its interval and its sample size.

    Raters who failed a check are flagged and counted. If there are any, all figures come a second time without them.

    Parameters
    ----------
    votes : of real or of simulated raters, not of both.
    seed, resamples : for the intervals.
    """
    table = pd.DataFrame([
        {
            **vote.model_dump(),
            "first": vote.methods[0],
            "second": vote.methods[1],
            "preference": vote.preference,
            "question": vote.question,
        }
        for vote in votes
    ])  # fmt: skip
    raters = [_rater(name, of) for name, of in table.groupby("rater")]
    flagged = [rater["rater"] for rater in raters if rater["flagged"]]
    scenarios: dict[str, Any] = {}
    for scenario, chosen in reversed(list(table.groupby("scenario"))):  # random, best
        scenarios[str(scenario)] = {"all": _figures(chosen, seed, resamples)}
        kept = chosen[~chosen["rater"].isin(flagged)]
        if flagged and len(kept):
            scenarios[str(scenario)]["without_flagged"] = _figures(kept, seed, resamples)
    return {
        "simulated": votes[0].simulated == "1",
        "n_votes": len(votes),
        "n_raters": len(raters),
        "n_flagged": len(flagged),
        "scenarios": scenarios,
        "raters": raters,
    }


def image_scores(votes: Sequence[Vote]) -> pd.Series:
    """Human score of each image by `IMAGE`: the mean of 1 (better), 0 (similar) and -1 (worse) over its votes."""
    given = [
        (method, vote.subject, vote.style, image, sign * {"1": 1, "similar": 0, "2": -1}[vote.choice])
        for vote in votes
        if vote.kind == "pair" and vote.image_1 is not None and vote.image_2 is not None
        for method, image, sign in ((vote.method_1, vote.image_1, 1), (vote.method_2, vote.image_2, -1))
    ]
    table = pd.DataFrame(given, columns=[*IMAGE, "score"]).astype({"score": float})
    return table.groupby(IMAGE, sort=False)["score"].mean()


def read_metrics(folder: Path) -> pd.DataFrame:
    """Every metric of every image by `IMAGE`, from the tables `<method>-<split>.parquet` of the stage `score`.

    A column that a scorer added is a metric too.

    Raises
    ------
    UserError : there is no such table, or one is damaged.
    """
    paths = sorted(folder.glob("*-*.parquet"))
    if not paths:
        raise UserError(f"{folder}: no tables of scores called <method>-<split>.parquet")
    tables = []
    for path in paths:
        table = load(path).assign(method=path.stem.rpartition("-")[0])
        try:
            table["mars2"] = table["subject_yes"] & table["style_yes"]
            tables.append(table.set_index(IMAGE).drop(columns=PARTS, errors="ignore").astype(float))
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, repr(error)) from None
    found = pd.concat(tables)
    return found[~found.index.duplicated(keep="last")]


def correlate(votes: Sequence[Vote], metrics: pd.DataFrame, seed: int, resamples: int) -> list[dict[str, Any]]:
    """Correlation of every metric with the human score, over all images and over those of direct merge (section 5.1).

    Parameters
    ----------
    metrics : as `read_metrics` returns them.

    Returns
    -------
    list
        A row for each scenario, choice of images and metric; None if one side is constant.
    """
    rows = []
    for scenario in sorted({vote.scenario for vote in votes}, reverse=True):
        scores = image_scores([vote for vote in votes if vote.scenario == scenario])
        scores = scores[scores.index.isin(metrics.index)]
        scored = metrics.loc[scores.index].assign(score=scores)
        for images in ("all", "direct"):
            chosen = scored if images == "all" else scored[scored.index.get_level_values("method") == images]
            if chosen.empty:
                continue
            chosen = chosen.dropna(axis="columns")
            groups = [group for _, group in chosen.groupby(PAIR, sort=False)]
            for metric in [*METRICS, *sorted({str(name) for name in chosen} - {*METRICS, "score"})]:
                if metric in chosen:
                    row: dict[str, Any] = {"scenario": scenario, "images": images, "metric": metric}
                    row |= {"n_images": len(chosen), "n_pairs": len(groups)}
                    values = [group[["score", metric]].to_numpy() for group in groups]
                    rows.append(row | _correlations(values, seed, resamples))
    return rows


def _correlations(groups: Sequence[npt.NDArray[np.float64]], seed: int, resamples: int) -> dict[str, Any]:
    """Correlations of two values, given as (images, 2) for each pair."""
    draws = drawn(len(groups), seed, resamples)
    resampled = np.array([correlations(*np.concatenate([groups[g] for g in draw]).T) for draw in draws])
    estimates = correlations(*np.concatenate(groups).T)
    figures: dict[str, Any] = {}
    for column, name in enumerate(("pearson", "spearman", "kendall")):
        figures |= _named(name, interval(estimates[column], resampled[:, column]))
    return figures


def _rater(name: Any, votes: pd.DataFrame) -> dict[str, Any]:
    checks, asked, repeats = (votes[votes["kind"] == kind] for kind in ("check", "pair", "repeat"))
    failed = sum(checks["choice"] != checks["expected"])
    first = dict(zip(asked["question"], asked["preference"], strict=True))
    again = zip(repeats["question"], repeats["preference"], strict=True)
    same = [preference == first[question] for question, preference in again if question in first]
    seconds = votes["seconds"].dropna()
    return {
        "rater": name,
        "votes": len(votes),
        "checks": len(checks),
        "checks_failed": failed,
        "repeats": len(same),
        "repeats_same": sum(same),
        "option_1": sum(votes["choice"] == "1"),
        "option_2": sum(votes["choice"] == "2"),
        "median_seconds": round(median(seconds), 3) if len(seconds) else None,
        "flagged": bool(failed),
    }


def _figures(votes: pd.DataFrame, seed: int, resamples: int) -> dict[str, Any]:
    """Figures of one scenario. Repeats and checks examine raters; they are not further votes for a method."""
    asked = votes[votes["kind"] == "pair"]
    sides = votes[(votes["kind"] != "check") & (votes["choice"] != "similar")]["choice"]
    raters = [_rater(name, of) for name, of in votes.groupby("rater")]
    seconds = votes["seconds"].dropna()
    figures: dict[str, Any] = {
        "n_votes": len(asked),
        "n_raters": len(raters),
        "n_pairs": asked.groupby(PAIR).ngroups,
        "comparisons": [
            _comparison(methods, of, seed, resamples) for methods, of in asked.groupby(["first", "second"])
        ],
        "strengths": _strengths(asked, seed, resamples),
        "agreement": _agreement(asked, seed, resamples),
        "option_1": _share(sum(sides == "1"), len(sides)),
        "repeats_same": _share(sum(r["repeats_same"] for r in raters), sum(r["repeats"] for r in raters)),
    }
    if len(seconds) > 1:
        low, middle, high = (round(value, 3) for value in quantiles(seconds, n=4, method="inclusive"))
        figures["seconds"] = {"median": middle, "quartiles": [low, high], "n": len(seconds)}
    return figures


def _comparison(methods: Any, votes: pd.DataFrame, seed: int, resamples: int) -> dict[str, Any]:
    """Shares of votes for the first of two methods, for neither, and for the second."""
    groups = [group.to_numpy() for _, group in votes.groupby(PAIR, sort=False)["preference"]]
    outcomes = {"better": (1,), "similar": (0,), "worse": (-1,), "better_or_similar": (1, 0)}
    figures: dict[str, Any] = {"methods": list(methods), "n_votes": len(votes), "n_pairs": len(groups)}
    figures["n_raters"] = votes["rater"].nunique()
    for name, wanted in outcomes.items():
        figures |= _named(name, bootstrap_mean([np.isin(group, wanted) for group in groups], seed, resamples))
    return figures


def _strengths(votes: pd.DataFrame, seed: int, resamples: int) -> list[dict[str, Any]] | None:
    """Bradley-Terry strengths; None if the methods have no common scale."""
    if votes.empty:
        return None
    methods = sorted({*votes["first"], *votes["second"]})
    groups = votes.groupby(PAIR, sort=False)
    pair, first, second = groups.ngroup(), votes["first"].map(methods.index), votes["second"].map(methods.index)
    wins = np.zeros((groups.ngroups, len(methods), len(methods)))
    np.add.at(wins, (pair, first, second), (1 + votes["preference"]) / 2)
    np.add.at(wins, (pair, second, first), (1 - votes["preference"]) / 2)
    if not comparable(wins.sum(axis=0)):
        return None
    estimate = bradley_terry(wins.sum(axis=0))
    draws = drawn(len(wins), seed, resamples)
    resampled = bradley_terry(wins[draws].sum(axis=1), limit=1000, tolerance=1e-6)
    return [
        {"method": method, "n_votes": int(wins[:, number].sum() + wins[:, :, number].sum())}
        | _named("strength", interval(estimate[number], resampled[:, number]))
        for number, method in enumerate(methods)
    ]


def _agreement(votes: pd.DataFrame, seed: int, resamples: int) -> dict[str, Any]:
    """Krippendorff's alpha over comparisons, whose values are worse, similar and better."""
    units = [
        [(unit + 1).tolist() for _, unit in group.groupby("question", sort=False)["preference"]]
        for _, group in votes.groupby(PAIR, sort=False)
    ]
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
    return {key: value if math.isfinite(value) else None for key, value in found.named(name).items()}
