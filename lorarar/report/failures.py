"""Failures of the methods: their kinds, their worst pairs, and their relation to the training split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorarar.report.tables import Provenance, Table, label, ordered
from lorarar.scoring import crossed
from lorarar.scoring.judges import Kind
from lorarar.scoring.score_table import ByPair, Row
from lorarar.scoring.statistics import Interval
from lorarar.tables import ends, title

MODES = ("right", "subject lost", "style lost", "both lost")
WORST = 5
"""Number of pairs shown for each method."""


def mode(row: Row) -> str:
    """The entry of `MODES` that describes an image."""
    return MODES[(not row.subject_yes) + 2 * (not row.style_yes)]


def modes(pairs: ByPair) -> dict[str, Interval]:
    """Share of each of `MODES`, with intervals over subjects and styles."""
    return {
        name: crossed.mean({pair: [mode(row) == name for row in rows] for pair, rows in pairs.items()}).interval()
        for name in MODES
    }


def modes_table(found: Mapping[str, Mapping[str, Interval]], split: str, n: str, provenance: Provenance) -> Table:
    """One row for each method; `n` gives the number of images in words."""
    rows = [[label(method), *map(ends, found[method].values())] for method in ordered(found)]
    notes = [f"Shares of {n}, with 95% intervals over subjects and styles."]
    return Table(f"What is wrong on the split {split}", ["", *MODES], rows, notes, str(provenance), shaded=True)


@dataclass(frozen=True)
class Bad:
    """A pair with poor results: the share of its `n` images that are right, and the first wrong one, if any."""

    pair: tuple[str, str]
    share: float
    n: int
    image: Row | None

    @property
    def mode(self) -> str:
        return mode(self.image) if self.image else MODES[0]


def worst(pairs: ByPair, number: int = WORST) -> list[Bad]:
    """The pairs with the smallest share of right images; the judge's mean probability orders equal ones."""
    share = {pair: float(np.mean([row.right for row in rows])) for pair, rows in pairs.items()}
    soft = {pair: np.mean([row.soft or 0.0 for row in rows]) for pair, rows in pairs.items()}
    return [
        Bad(pair, share[pair], len(pairs[pair]), next((row for row in pairs[pair] if not row.right), None))
        for pair in sorted(pairs, key=lambda pair: (share[pair], soft[pair]))[:number]
    ]


def worst_table(
    found: Mapping[str, Sequence[Bad]], names: Mapping[str, str], split: str, provenance: Provenance
) -> Table:
    """One row for each method, its worst pairs in the columns; `names` are titles of subjects and styles."""
    methods = [method for method in ordered(found) if found[method]]
    number = max(len(found[method]) for method in methods)
    rows = [
        [
            label(method),
            *(f"{bad.share:.2f} {names[bad.pair[0]]} in {names[bad.pair[1]]} ({bad.mode})" for bad in found[method]),
        ]
        for method in methods
    ]
    notes = [
        f"The share of right images of each method's worst {number} pairs, and what is wrong with the first wrong one. "
        "Of pairs with equal shares, those come first that the judge gives the smaller probability.",
    ]
    return Table(
        f"Worst pairs on the split {split}", ["", *(f"{i + 1}" for i in range(number))], rows, notes, str(provenance)
    )


@dataclass(frozen=True)
class Neighbour:
    """A subject or style of a split, and the most similar one of the training split.

    Attributes
    ----------
    similarity : mean cosine of their pictures' features, by DINO for subjects and by CLIP for styles.
    shares : method -> share of its images of this subject or style that are right in it.
    n : number of these images.
    """

    kind: Kind
    name: str
    nearest: str
    similarity: float
    shares: Mapping[str, Interval]
    n: int


def shares(pairs: ByPair, kind: Kind, name: str) -> Interval:
    """Share of the images of a subject that are right in the subject, or of a style in the style."""
    place = ("subject", "style").index(kind)
    values = {
        pair: [float(getattr(row, f"{kind}_yes")) for row in rows]
        for pair, rows in pairs.items()
        if pair[place] == name
    }
    return crossed.mean(values).interval()


def rank_correlation(neighbours: Sequence[Neighbour], method: str) -> float:
    """Spearman's rho of similarity and share; nan if one of them is constant or there are fewer than 3 neighbours."""
    from scipy.stats import spearmanr

    pairs = [(one.similarity, one.shares[method].mean) for one in neighbours]
    if len(pairs) < 3 or any(len(set(values)) == 1 for values in zip(*pairs, strict=True)):
        return float("nan")
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def neighbours_table(found: Sequence[Neighbour], names: Mapping[str, str], split: str, provenance: Provenance) -> Table:
    """One row for each subject or style, the most familiar first, and Spearman's rho of each kind."""
    methods = list(found[0].shares)
    rows = []
    for kind in ("subject", "style"):
        those = sorted((one for one in found if one.kind == kind), key=lambda one: -one.similarity)
        for one in those:
            values = [ends(one.shares[method]) for method in methods]
            rows.append([names[one.name], kind, names[one.nearest], f"{one.similarity:.3f}", f"{one.n}", *values])
        rhos = [rank_correlation(those, method) for method in methods]
        texts = ["" if np.isnan(rho) else f"{rho:+.2f}" for rho in rhos]
        rows.append([f"Spearman's rho ({kind}s, n = {len(those)})", kind, "", "", "", *texts])
    notes = [
        "Share of images that are right in the row's own subject or style, against how much it looks like its nearest "
        "neighbour among those that the hypernetwork was trained on: mean cosine of reference pictures, of subjects by "
        "DINO, of styles by CLIP-I's model. Intervals are over its pairs. With so few "
        "subjects and styles a rank correlation below .9 is no sign of anything.",
    ]
    header = ["", "kind", "nearest of training", "similarity", "images", *(title(method) for method in methods)]
    return Table(f"Familiar and unfamiliar on the split {split}", header, rows, notes, str(provenance))
