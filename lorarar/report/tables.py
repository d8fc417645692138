"""Tables of MARS² and of the standard metrics, next to the paper's figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorarar.data.controls import CONTROLS
from lorarar.merging.registry import METHODS
from lorarar.scoring import crossed
from lorarar.scoring.judges import Kind
from lorarar.scoring.score_table import MEANS
from lorarar.tables import TITLES, ends, interval, markdown, signed, title

Figures = Mapping[str, float]
Right = Mapping[tuple[str, str], Sequence[bool]]
"""(subject, style) -> one entry for each image of the pair, true if it is right."""
COLUMNS = {
    "subject": "share that is right in the subject",
    "style": "share that is right in the style",
    "family": "share in the style's family, whichever instance",
    "attempts": "mean number of images drawn until the first right one, one more than there are where none is right",
    "unanswered": "answers that were neither yes nor no, which count as no",
}
"""Explanations of the columns of the MARS² table."""
PAPER_NAMES = {"direct": "direct_merge", "joint": "joint_training"}
"""Methods that have another name in data/paper_results.yaml."""


@dataclass(frozen=True)
class Provenance:
    """Origin of a table: short hashes of its inputs, and the seed."""

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
    """A table with notes; `str(table)` is Markdown. Cells may contain `**bold**` and `code`.

    Parameters
    ----------
    rows : the first cell of each row is its label; cells that are missing at the end are empty.
    notes : paragraphs below the table.
    provenance : a sentence on the table's inputs.
    shaded : true if cells begin with a share that the page may show as a shade.
    """

    heading: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    provenance: str = ""
    shaded: bool = False

    def __str__(self) -> str:
        parts = [f"# {self.heading}", markdown(self.header, self.rows), *self.notes, self.provenance]
        return "\n\n".join(filter(None, parts)) + "\n"


def mars2_table(
    metrics: Mapping[str, Figures],
    paper: Mapping[str, Mapping[str, float]],
    split: str,
    judge: Figures,
    provenance: Provenance,
    best: Collection[str] = (),
) -> Table:
    """MARS² of every method between floors and ceilings, next to the paper's Table 1.

    Parameters
    ----------
    metrics : method -> result of `score_table.summarise`, in the order of the rows.
    paper : name in the paper -> average and best.
    judge : examination of the judge, from results/<base>/judge.json.
    best : methods that are not worse than the best one (`crossed.best_set`), which the table marks.
    """
    # Columns that add nothing are left out: families that equal styles, and unanswered questions if there are none.
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
            label(method) + " *" * (method in best),
            interval(figures, "mars2_average"), interval(figures, "mars2_best"),
            *(f"{figures[name]:.2f}" for name in shares),
            *(f"{figures[name]:.0f}" for name in (*unanswered, "n_images", "n_pairs")),
            *(f"{published[name]:.2f}" if name in published else "" for name in ("average", "best")),
        ])  # fmt: skip
    explained = "; ".join(f"{name}: {COLUMNS[name]}" for name in (*shares, *unanswered))
    notes = [
        "MARS² average: share of images that are right in subject and style; best: share of pairs with at least one "
        f"such image; {explained}. Intervals are over subjects and styles, both of which are samples."
        + " Methods marked * are not worse than the best one at 5% (paired differences, Holm's correction)."
        * bool(best),
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
    """CLIP-I, DINO and CLIP-T of every method, next to the paper's Table A2; arguments as in `mars2_table`."""
    shown = [TITLES[name] for name in MEANS]
    header = ["", *(f"{name} [95%]" for name in shown), "images", "pairs", *(f"paper: {name}" for name in shown)]
    rows = []
    for method in ordered(metrics):
        figures = metrics[method]
        published = paper.get(PAPER_NAMES.get(method, method), {})
        rows.append([
            label(method), *(interval(figures, name, 3) for name in MEANS),
            f"{figures['n_images']:.0f}", f"{figures['n_pairs']:.0f}",
            *(f"{published[name]:.3f}" if name in published else "" for name in MEANS),
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
    provenance: Provenance,
) -> Table:
    """MARS² average of each merging method minus that of the best floor and of the methods above it in the table.

    Parameters
    ----------
    right : method -> the judge's answers, for the same pairs.
    metrics : as in `mars2_table`.
    """
    methods = [name for name in right if name in METHODS]
    floors = [name for name in right if name in CONTROLS and CONTROLS[name].bound == "floor"]
    best = [max(floors, key=lambda name: metrics[name]["mars2_average"])] if floors else []
    against = [*best, *methods[:-1]]
    rows = [
        [title(row), *(_difference(right[row], right[name]) for name in against[: len(best) + place])]
        for place, row in enumerate(methods)
    ]
    n = metrics[methods[0]] if methods else {"n_images": 0, "n_pairs": 0}
    notes = [
        f"Row less column, on the same {n['n_pairs']:.0f} pairs ({n['n_images']:.0f} images of each method). Intervals "
        "are over subjects and styles, the same for both, so that what makes a pair hard cancels; **bold** where 0 is "
        "outside. Each holds for itself: among twenty comparisons of equal methods, one is expected to be bold.",
    ]
    header = ["", *(f"less {label(name)}" for name in against)]
    return Table(f"Differences of MARS² average on the split {split}", header, rows, notes, str(provenance))


def breakdown_table(
    right: Mapping[str, Right],
    kind: Kind,
    titles: Mapping[str, str],
    split: str,
    provenance: Provenance,
) -> Table:
    """MARS² average of every method for each subject or each style, as in the paper's Figure A7.

    Parameters
    ----------
    right : method -> the judge's answers.
    kind : a column for each subject, or for each style.
    titles : name of a subject or style -> its title; in the order of the columns.
    """
    place = ("subject", "style").index(kind)
    parts = {
        method: {name: {pair: values for pair, values in found.items() if pair[place] == name} for name in titles}
        for method, found in right.items()
    }
    sizes = next(iter(parts.values()))
    header = ["", *(f"{titles[name]} (n = {sum(map(len, sizes[name].values()))})" for name in titles)]
    rows = [
        [label(method), *(ends(crossed.mean(parts[method][name]).interval()) for name in titles)]
        for method in ordered(right)
    ]
    number = " or ".join(map(str, sorted({len(values) for values in sizes.values()})))
    notes = [
        f"Share of images that are right in subject and style, with 95% intervals. They are over the {number} "
        f"pairs of each {kind}.",
    ]
    return Table(f"MARS² average by {kind} on the split {split}", header, rows, notes, str(provenance), shaded=True)


def _difference(first: Right, second: Right) -> str:
    found = crossed.difference(first, second).interval()
    text = signed(found)
    return text if found.low <= 0 <= found.high else f"**{text}**"


def ordered(metrics: Mapping[str, Any]) -> list[str]:
    """Floors first, then the methods, then the ceilings."""
    order = {"floor": 0, "ceiling": 2}
    return sorted(metrics, key=lambda name: order[CONTROLS[name].bound] if name in CONTROLS else 1)


def label(method: str) -> str:
    """`title`, followed by the kind of bound that a control is."""
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
    """Share of wrong pairs that the judge recognises, and their number, for each kind of hard pair."""
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
