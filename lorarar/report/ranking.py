"""Stability of the ranking of methods across scores, judges, wordings and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import fmean

from lorarar.report.tables import Figures, Provenance, Table
from lorarar.scoring.score_table import Row
from lorarar.scoring.statistics import rank_agreement, spread
from lorarar.tables import title

GROUPS = {
    "score": "other scores of the same images",
    "judge": "other judges",
    "wording": "the judge asked in other words",
    "seed": "one seed of generation alone",
}
"""Kinds of views -> their descriptions."""


@dataclass(frozen=True)
class View:
    """One way to score all methods.

    Attributes
    ----------
    group : a key of `GROUPS`.
    name : name within the group.
    scores : method -> score.
    images : number of scored images of each method.
    """

    group: str
    name: str
    scores: dict[str, float]
    images: int


def headline(rows: Mapping[str, Sequence[Row]]) -> View:
    """MARS² average of all images of each method, to which the other views are compared."""
    return View("score", "MARS² average", {m: fmean(row.right for row in of) for m, of in rows.items()}, _number(rows))


def other_scores(rows: Mapping[str, Sequence[Row]]) -> list[View]:
    """Other scores that give a ranking: soft MARS², and CLIP-I x DINO."""
    found = [
        View(
            "score",
            "CLIP-I x DINO",
            {m: _mean(of, "clip_i") * _mean(of, "dino") for m, of in rows.items()},
            _number(rows),
        )
    ]
    soft = {method: [row.soft for row in of if row.soft is not None] for method, of in rows.items()}
    if all(len(soft[method]) == len(rows[method]) for method in rows):
        found.insert(0, View("score", "soft MARS²", {m: fmean(of) for m, of in soft.items()}, _number(rows)))
    return found


def by_seed(rows: Mapping[str, Sequence[Row]]) -> list[View]:
    """MARS² average of the first image of every pair, of the second, and so on: each has one seed for all methods."""
    found = []
    for index in sorted({row.index for of in rows.values() for row in of}):
        one = {method: [row for row in of if row.index == index] for method, of in rows.items()}
        scores = {method: fmean(row.right for row in of) for method, of in one.items()}
        found.append(View("seed", str(index), scores, _number(one)))
    return found


def agreement(view: View, other: View) -> float:
    """Kendall's tau-b of two views; nan if one of them scores all methods alike."""
    return rank_agreement({"a": view.scores, "b": other.scores})["a", "b"]


def ranking_table(first: View, others: Sequence[View], split: str, judge: Figures, provenance: Provenance) -> Table:
    """Scores of every view and agreement of its ranking with that of `first`; a sentence on each group.

    Parameters
    ----------
    first : the view that `headline` returns.
    judge : examination of the judge, from results/<base>/judge.json.
    """
    methods = list(first.scores)
    header = ["", *map(title, methods), "Kendall's tau", "images"]
    rows = [[f"**{first.name}**", *_cells(first, methods), "", str(first.images)]]
    notes = [
        "Scores of every method under other conditions, and Kendall's tau between each ranking and the first row's: 1 "
        f"if all {len(methods)} methods stand in the same order, -1 if in the opposite one. Images: of each method.",
    ]
    for group, words in GROUPS.items():
        views = [view for view in others if view.group == group]
        taus = [agreement(first, view) for view in views]
        rows += [
            [f"{group}: {view.name}", *_cells(view, methods), "" if isnan(tau) else f"{tau:.2f}", str(view.images)]
            for view, tau in zip(views, taus, strict=True)
        ]
        known = [tau for tau in taus if not isnan(tau)]
        if known:
            ahead = sum(_best(view) == _best(first) for view in views)
            moved = f" {_moves(views, methods)}" if len(views) > 1 and group != "score" else ""
            notes.append(
                f"{words[0].upper()}{words[1:]}: tau {fmean(known):.2f} on average, {min(known):.2f} at least; "
                f"{title(_best(first))} is ahead in {ahead} of {len(views)}.{moved}"
            )
    if not any(view.group == "wording" for view in others):
        notes.append(f"The judge `{judge['judge']}` reads no words, so that there is no wording to change.")
    return Table(f"Does the ranking hold? (split {split})", header, rows, notes, str(provenance))


def _moves(views: Sequence[View], methods: Sequence[str]) -> str:
    """Spread of each method's score over the views of a group."""
    spreads = {method: spread({view.name: view.scores[method] for view in views}) for method in methods}
    listed = (f"{title(m)} {s.mean:.2f} ({s.deviation:.2f}; {s.low:.2f} to {s.high:.2f})" for m, s in spreads.items())
    return f"Mean, standard deviation and extremes: {', '.join(listed)}."


def _best(view: View) -> str:
    return max(view.scores, key=lambda method: view.scores[method])


def _cells(view: View, methods: Sequence[str]) -> list[str]:
    return [f"{view.scores[method]:.2f}" for method in methods]


def _mean(rows: Sequence[Row], name: str) -> float:
    return fmean(getattr(row, name) for row in rows)


def _number(rows: Mapping[str, Sequence[Row]]) -> int:
    return min(map(len, rows.values()))
