"""Tables: this world's figures, the paper's for comparison, and their sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorarar.data.controls import CONTROLS
from lorarar.merge.registry import METHODS
from lorarar.scoring.judges import Kind
from lorarar.scoring.statistics import Interval, bootstrap_mean, paired_difference

Figures = Mapping[str, float]
Right = Mapping[tuple[str, str], Sequence[bool]]
"""(subject, style) -> whether each image of the pair is right."""
COLUMNS = {
    "subject": "share that is right in the subject",
    "style": "share that is right in the style",
    "family": "share in the style's family, whichever instance",
    "attempts": "mean number of images drawn until the first right one, one more than there are where none is right",
    "unanswered": "answers that were neither yes nor no, which count as no",
}
"""Columns of the MARS² table in words."""
PAPER_NAMES = {"direct": "direct_merge", "joint": "joint_training"}
"""Methods that data/paper_results.yaml calls otherwise."""


@dataclass(frozen=True)
class Provenance:
    """Sources of a table: short hashes, and the seed."""

    base: str
    seed: int
    params: str
    code: str
    data: str
    judge: str

    def __str__(self) -> str:
        return (
            f"Made from: base `{self.base}`, seed {self.seed}, judge `{self.judge}`, "
            f"parameters `{self.params}`, code `{self.code}`, weights and tables in data/ `{self.data}`."
        )


@dataclass(frozen=True)
class Table:
    """A table with what is to be said about it; `str` of it is Markdown. Cells may have `**bold**` and `code`.

    Parameters
    ----------
    rows : the first cell of each is its label; those that are missing at the end are empty.
    notes : paragraphs.
    provenance : what it was made from, in a sentence.
    shaded : whether cells begin with a share that may be shown as a shade.
    """

    heading: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    provenance: str = ""
    shaded: bool = False

    def __str__(self) -> str:
        table = "\n".join(
            f"| {' | '.join([*line, *[''] * (len(self.header) - len(line))])} |"
            for line in [self.header, ["---"] + ["---:"] * (len(self.header) - 1), *self.rows]
        )
        return "\n\n".join(filter(None, [f"# {self.heading}", table, *self.notes, self.provenance])) + "\n"


def title(method: str) -> str:
    """Name of a method or a control in tables and figures."""
    return METHODS[method].title if method in METHODS else CONTROLS[method].title


def mars2_table(
    metrics: Mapping[str, Figures],
    paper: Mapping[str, Mapping[str, float]],
    split: str,
    judge: Figures,
    provenance: Provenance,
) -> Table:
    """MARS² of every method between floors and ceilings, and the paper's Table 1.

    Parameters
    ----------
    metrics : method -> what `scores.summarise` gives, in the order of the rows.
    paper : name in the paper -> average and best.
    judge : how far the judge can be trusted, as results/<base>/judge.json says.
    """
    # What says nothing new is not shown: families where they are as right as styles, and no unanswered questions.
    known = all("family" in figures for figures in metrics.values())
    family = ["family"] * (known and any(figures["family"] != figures["style"] for figures in metrics.values()))
    unanswered = ["unanswered"] * any(figures["unanswered"] for figures in metrics.values())
    shares = ["subject", "style", *family, "attempts"]
    header = [
        "", "MARS² average [95%]", "MARS² best [95%]", *shares, *unanswered,
        "images", "pairs", "paper: average", "paper: best",
    ]  # fmt: skip
    rows = []
    for method in ordered(metrics):
        figures = metrics[method]
        published = paper.get(PAPER_NAMES.get(method, method), {})
        rows.append([
            label(method), interval(figures, "mars2_average"), interval(figures, "mars2_best"),
            *(f"{figures[name]:.2f}" for name in shares),
            *(f"{figures[name]:.0f}" for name in (*unanswered, "n_images", "n_pairs")),
            *(f"{published[name]:.2f}" if name in published else "" for name in ("average", "best")),
        ])  # fmt: skip
    explained = "; ".join(f"{name}: {COLUMNS[name]}" for name in (*shares, *unanswered))
    notes = [
        "MARS² average: share of images that are right in subject and style; best: share of pairs with at least one "
        f"such image; {explained}. Intervals resample whole pairs.",
        _trust(judge),
        _comparable(provenance.base, "(Table 1, SDXL, LLaVA-Critic 7B) are from another world with another judge"),
    ]
    return Table(f"MARS² on the split {split}", header, rows, notes, str(provenance))


def similarity_table(
    metrics: Mapping[str, Figures],
    paper: Mapping[str, Mapping[str, float]],
    split: str,
    judge: Figures,
    provenance: Provenance,
) -> Table:
    """CLIP-I, DINO and CLIP-T of every method, and the paper's Table A2; arguments as in `mars2_table`."""
    names = ("clip_i", "dino", "clip_t")
    shown = ("CLIP-I", "DINO", "CLIP-T")
    header = [
        "",
        *(f"{name} [95%]" for name in shown),
        "images",
        "pairs",
        *(f"paper: {name}" for name in shown),
    ]
    rows = []
    for method in ordered(metrics):
        figures = metrics[method]
        published = paper.get(PAPER_NAMES.get(method, method), {})
        rows.append([
            label(method), *(interval(figures, name, 3) for name in names),
            f"{figures['n_images']:.0f}", f"{figures['n_pairs']:.0f}",
            *(f"{published[name]:.3f}" if name in published else "" for name in names),
        ])  # fmt: skip
    notes = [
        "CLIP-I: mean cosine similarity to the style's picture; DINO: to the subject's pictures; CLIP-T: to "
        "the prompt without the rare token. CLIP-I and DINO reward copying a reference.",
        _areas(judge),
        _comparable(provenance.base, "are from another world with other models"),
    ]
    return Table(f"Standard metrics on the split {split}", header, rows, notes, str(provenance))


def differences_table(
    right: Mapping[str, Right],
    metrics: Mapping[str, Figures],
    split: str,
    seed: int,
    resamples: int,
    provenance: Provenance,
) -> Table:
    """MARS² average of each merging method less that of the best floor and of the methods above it in the table.

    Parameters
    ----------
    right : method -> what the judge found, for the same pairs.
    metrics : as in `mars2_table`.
    seed, resamples : of the intervals.
    """
    methods = [name for name in right if name in METHODS]
    floors = [name for name in right if name in CONTROLS and CONTROLS[name].bound == "floor"]
    best = [max(floors, key=lambda name: metrics[name]["mars2_average"])] if floors else []
    against = [*best, *methods[:-1]]
    rows = [
        [title(row), *(_difference(right[row], right[name], seed, resamples) for name in against[: len(best) + place])]
        for place, row in enumerate(methods)
    ]
    n = metrics[methods[0]] if methods else {"n_images": 0, "n_pairs": 0}
    notes = [
        f"Row less column, on the same {n['n_pairs']:.0f} pairs ({n['n_images']:.0f} images of each method). Intervals "
        "resample whole pairs, the same ones for both, so that what makes a pair hard cancels; **bold** where 0 lies "
        "outside. Each holds for itself: among twenty comparisons of equal methods, one is expected to be bold.",
    ]
    header = ["", *(f"less {label(name)}" for name in against)]
    return Table(f"Differences of MARS² average on the split {split}", header, rows, notes, str(provenance))


def breakdown_table(
    right: Mapping[str, Right],
    kind: Kind,
    titles: Mapping[str, str],
    split: str,
    seed: int,
    resamples: int,
    provenance: Provenance,
) -> Table:
    """MARS² average of every method for each subject or each style apart, as in the paper's Figure A7.

    Parameters
    ----------
    right : method -> what the judge found.
    kind : whose columns.
    titles : name of a subject or style -> what the table calls it; the order of the columns.
    seed, resamples : of the intervals.
    """
    place = ("subject", "style").index(kind)
    parts = {
        method: {name: [values for pair, values in found.items() if pair[place] == name] for name in titles}
        for method, found in right.items()
    }
    sizes = next(iter(parts.values()))
    header = ["", *(f"{titles[name]} (n = {sum(map(len, sizes[name]))})" for name in titles)]
    rows = [
        [label(method), *(ends(bootstrap_mean(parts[method][name], seed, resamples)) for name in titles)]
        for method in ordered(right)
    ]
    number = " or ".join(map(str, sorted({len(values) for values in sizes.values()})))
    notes = [
        f"Share of images that are right in subject and style, with 95% intervals. They resample the {number} pairs of "
        f"each {kind}: so few pairs make them rough, and rather too narrow.",
    ]
    return Table(f"MARS² average by {kind} on the split {split}", header, rows, notes, str(provenance), shaded=True)


def _difference(first: Right, second: Right, seed: int, resamples: int) -> str:
    found = paired_difference(list(first.values()), [second[pair] for pair in first], seed, resamples)
    text = signed(found)
    return text if found.low <= 0 <= found.high else f"**{text}**"


def ordered(metrics: Mapping[str, Any]) -> list[str]:
    """Floors first, then the methods, then the ceilings."""
    order = {"floor": 0, "ceiling": 2}
    return sorted(metrics, key=lambda name: order[CONTROLS[name].bound] if name in CONTROLS else 1)


def label(method: str) -> str:
    """`title`, and of a control which bound it is."""
    return f"{title(method)} ({CONTROLS[method].bound})" if method in CONTROLS else title(method)


def _comparable(base: str, otherwise: str) -> str:
    if base in ("sdxl", "koala"):
        return f"The paper's figures are about {base}, too, with photographs, seeds and adapters of its own."
    return f"The paper's figures {otherwise}: compare the ranking, not the values."


def _trust(judge: Figures) -> str:
    if not judge["n"]:
        return f"The judge was not examined: {judge['not_examined']}."
    return (
        "The judge's balanced accuracy on renderings whose answer is known "
        f"(n = {judge['n']:.0f} each): subject {interval(judge, 'subject_balanced_accuracy', 3)}, "
        f"style {interval(judge, 'style_balanced_accuracy', 3)}. Of wrong ones that look alike it knows: "
        f"{_alike(judge)}."
    )


def _areas(judge: Figures) -> str:
    if not judge["n"]:
        return _trust(judge)
    return (
        "How well they tell right from wrong renderings (area under the ROC curve, 0.5 by chance, "
        f"n = {judge['n']:.0f} each): subjects by DINO {_auc(judge, 'subject', 'dino')}; "
        f"styles by CLIP-I {_auc(judge, 'style', 'clip_i')}."
    )


def _alike(judge: Figures) -> str:
    """Share of wrong pairs that the judge knows, and their number, for each way of being hard."""
    ways = {
        ("subject", "same_class"): "another subject of the class",
        ("subject", "recoloured"): "the subject's shape in other colours",
        ("style", "same_family"): "another style of the family",
    }
    return ", ".join(
        f"{words} {interval(judge, f'{kind}_{way}_accuracy', 3)} (n = {judge[f'{kind}_n_{way}']:.0f})"
        for (kind, way), words in ways.items()
        if judge.get(f"{kind}_n_{way}")
    )


def _auc(judge: Figures, kind: Kind, score: str) -> str:
    own = f", the judge's own probability {interval(judge, f'{kind}_auc', 3)}" if f"{kind}_auc" in judge else ""
    return f"{interval(judge, f'{kind}_{score}_auc', 3)}{own}"


def estimate(figures: Figures, name: str) -> Interval:
    """A figure with its `_ci_low` and `_ci_high`."""
    return Interval(figures[name], figures[f"{name}_ci_low"], figures[f"{name}_ci_high"])


def interval(figures: Figures, name: str, digits: int = 2) -> str:
    """The same, as `ends` writes it."""
    return ends(estimate(figures, name), digits)


def signed(found: Interval) -> str:
    """`+0.14 [+0.02, +0.28]`, where what rounds to 0 has no minus."""
    mean, low, high = (f"{round(value, 2) + 0.0:+.2f}" for value in found)
    return f"{mean} [{low}, {high}]"


def ends(found: Interval, digits: int = 2) -> str:
    """`0.21 [0.10, 0.34]`."""
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
