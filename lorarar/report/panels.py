"""Sections of the page, each with n, interval and the place of its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from lorarar.merging.registry import METHODS
from lorarar.pictures import Picture
from lorarar.report import charts, claims, failures
from lorarar.report.claims import Claim
from lorarar.report.coefficients import Fitted
from lorarar.report.failures import Bad, Neighbour
from lorarar.report.page import Block, Cell, Chart, Facts, Gallery, Panel, Shown, Text
from lorarar.report.tables import Figures, Table, ordered
from lorarar.scoring.score_table import ByPair, Row
from lorarar.scoring.statistics import Interval
from lorarar.study.report import correlation, published
from lorarar.tables import title

Look = Callable[[str, tuple[str, str], int], Picture]
"""(method, pair, index) -> an image; the methods `subject` and `style` give the references."""
MOST_ROWS = 40
"""Largest number of pairs of a split with pictures in the page, so that it stays small."""


@dataclass(frozen=True)
class Evidence:
    """All findings about one split.

    Attributes
    ----------
    metrics : method -> result of `score_table.summarise`.
    rows : method -> scores of its images by pair; all methods have the same pairs.
    titles : name of a subject or style -> title.
    tables : name -> the table in tables/<name>-<split>.md.
    modes, worst : method -> shares of its failures, and its worst pairs.
    look : loads an image.
    paper : name in the paper -> MARS² average and best on this split, if there are any.
    """

    split: str
    metrics: Mapping[str, Figures]
    rows: Mapping[str, ByPair]
    titles: Mapping[str, str]
    tables: dict[str, Table]
    claims: Sequence[Claim]
    modes: Mapping[str, Mapping[str, Interval]]
    worst: Mapping[str, Sequence[Bad]]
    look: Look
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    fitted: Sequence[Fitted] = ()
    neighbours: Sequence[Neighbour] = ()

    @property
    def n(self) -> str:
        numbers = {(figures["n_images"], figures["n_pairs"]) for figures in self.metrics.values()}
        return " or ".join(f"{images:.0f} images of {pairs:.0f} pairs" for images, pairs in sorted(numbers))

    def shown(self, *names: str) -> list[Shown]:
        """The tables of these names that exist and have rows."""
        return [
            Shown(self.tables[name], f"tables/{name}-{self.split}.md")
            for name in names
            if name in self.tables and self.tables[name].rows
        ]

    def named(self, pair: tuple[str, str]) -> str:
        return f"{self.titles[pair[0]]} in {self.titles[pair[1]]}"


def results(splits: Sequence[Evidence]) -> Panel:
    """Every method between floors and ceilings, next to the paper's figures."""
    blocks: list[Block] = [
        Text(
            "MARS² asks of every image whether a judge finds both the right subject and the right style in it. "
            "*Average* is the share of images where it does, *best* the share of pairs with at least one. Floors are "
            "what is reached with one LoRA or none, ceilings are the known answer."
        ),
        Text(
            "**What may be compared with the paper:** the order of methods. Its values are of another world, SDXL, "
            "and of another judge, LLaVA-Critic; that a figure here is above or below the paper's means nothing."
        ),
    ]
    for one in splits:
        names = ordered(one.metrics)
        best = max(
            (name for name in names if name in METHODS), key=lambda m: one.metrics[m]["mars2_average"], default=""
        )
        says = f" The best merge is {title(best)}, {one.metrics[best]['mars2_average']:.2f}." if best else ""
        blocks += [
            Chart(
                charts.methods(one.metrics, one.paper),
                f"MARS² average and best of {len(names)} methods on the split {one.split}.{says} "
                "The table below has all values.",
                f"Split {one.split}: {one.n} for each method; intervals of 95% over subjects and styles. Filled: here; "
                f"hollow: published. Numbers: [metrics/](metrics) and the table below.",
            ),
            *one.shown("mars2"),
        ]
    return Panel("results", "Results", blocks)


def claim(splits: Sequence[Evidence]) -> Panel:
    """The paper's claim, competitor by competitor."""
    blocks: list[Block] = []
    for one in splits:
        if not any(found.difference for found in one.claims):
            continue
        verdict = claims.overall(one.claims)
        blocks += [
            Text(
                f"Split {one.split}: that LoRA.rar beats {', '.join(title(found.competitor) for found in one.claims)} "
                f"on MARS² is here **{verdict}**."
            ),
            Chart(
                charts.claim(one.claims),
                f"Differences of MARS² average between LoRA.rar and each competitor on the split {one.split}: "
                + "; ".join(f"{title(found.competitor)} {found.verdict}" for found in one.claims)
                + ".",
                f"Split {one.split}, {one.n} for each method, compared on the same pairs. Confirmed: above 0, with a "
                "p-value below .05 after Holm's correction; refuted: below 0 likewise; open: neither, or no score.",
            ),
            *one.shown("claim", "differences", "power"),
        ]
    return Panel("claim", "The claim under test", blocks)


def cost(splits: Sequence[Evidence]) -> Panel:
    """The paper's Table 2."""
    return Panel("cost", "What merging costs", [block for one in splits for block in one.shown("footprint")])


def parts(splits: Sequence[Evidence]) -> Panel:
    """Results by subject and by style, the paper's Figure A7."""
    tables = [block for one in splits for block in one.shown("mars2-by-subject", "mars2-by-style")]
    return Panel("parts", "Subjects and styles apart", tables)


def coefficients(splits: Sequence[Evidence], seed: int) -> Panel:
    """Merger coefficients, the paper's Figures 3 and 8."""
    blocks: list[Block] = []
    for one in (one for one in splits if one.fitted):
        names = " and ".join(title(fitted.method) for fitted in one.fitted)
        pairs = len(one.fitted[0].pairs)
        where = f"Split {one.split}, {pairs} pairs. Numbers: tables/coefficients-{one.split}.md."
        blocks += [
            Chart(
                charts.columns(one.fitted, seed),
                f"Coefficients of {names} for some columns of the weights, with their range over pairs.",
                f"The paper's Figures 3 and 8: {charts.COLUMNS} columns drawn by lot, of layers that have them. "
                f"Line: range over pairs; dot: median. {where}",
            ),
            Chart(
                charts.histograms(one.fitted),
                f"Distribution of the coefficients of {names} over all columns and pairs.",
                f"All columns of all pairs. 1 takes a column as it is, 0 leaves it out. {where}",
            ),
            Chart(
                charts.blocks(one.fitted),
                f"Median and quartiles of the coefficients of {names} in each block of the UNet, by projection.",
                f"By block and projection: median and quartiles over columns and pairs. {where}",
            ),
            *one.shown("coefficients"),
        ]
    return Panel("coefficients", "Merger coefficients", blocks)


def gallery(splits: Sequence[Evidence]) -> Panel:
    """Every method on the same pairs, the paper's Figures 9 and 10."""
    blocks: list[Block] = [
        Text(
            "The first image that each method made for a pair, whether it is a good one or not, with the judge's "
            "verdict on it and how many of all images of the pair are right. All sampling begins with the same noise."
        )
    ]
    for one in splits:
        pairs = list(next(iter(one.rows.values())))
        first = few(pairs)[:MOST_ROWS]
        others = [pair for pair in pairs if pair not in first]
        kept = others[:: ceil(len(others) / max(MOST_ROWS - len(first), 1))] if others else []
        # The methods that are compared most often stand next to the references: a page is narrower than all columns.
        first_seen = {"truth": 0, claims.SUBJECT: 1, "ziplora": 2}
        methods = sorted(one.rows, key=lambda m: (first_seen.get(m, 3), m not in METHODS))
        columns = ["Subject", "Style", *map(title, methods)]
        n = f"Split {one.split}; verdicts: [tables/mars2-{one.split}.md](tables/mars2-{one.split}.md)."
        blocks.append(Gallery(columns, [_pictures(one, pair, methods) for pair in first], n))
        if kept:
            some = f"{len(kept)} of the {len(others)} other pairs" if len(kept) < len(others) else f"{len(kept)}"
            rows = [_pictures(one, pair, methods) for pair in kept]
            blocks.append(Gallery(columns, rows, n, f"The {some} other pairs of the split {one.split}"))
    return Panel("pictures", "Pictures", blocks)


def few(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """One pair for each subject, each with another style: a small selection for a first look."""
    subjects, styles = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    return [(s, t) for s, t in pairs if subjects.index(s) % len(styles) == styles.index(t)]


def learning(curve: Mapping[str, Sequence[float]]) -> Panel:
    """Training of the hypernetwork."""
    if not curve:
        return Panel("learning", "Learning", [])
    steps = len(curve["step"])
    chart = Chart(
        charts.learning(curve),
        f"The merging loss of the hypernetwork over {steps} steps, with its terms.",
        f"Eq. 3 over {steps} steps on pairs of the training split: the sum, how far the merge departs from the content "
        "and from the style LoRA, and how much their coefficients overlap. Faint: single steps, whose pairs and noise "
        "differ; strong: medians of the steps around. Numbers: [plots/hypernet.csv](plots/hypernet.csv).",
    )
    return Panel("learning", "Learning", [chart])


def failed(splits: Sequence[Evidence]) -> Panel:
    """Failures: their kinds, the worst pairs, familiar and unfamiliar concepts."""
    blocks: list[Block] = []
    for one in splits:
        merging = {method: one.worst[method] for method in ordered(one.worst) if method in METHODS}
        blocks.append(
            Chart(
                charts.modes(one.modes),
                f"Shares of images that are right, lost the subject, the style, or both, on the split {one.split}.",
                f"Split {one.split}: what is wrong, in shares of {one.n} for each method. Intervals: in the table.",
            )
        )
        blocks += one.shown("modes")
        if merging:
            number = max(map(len, merging.values()))
            rows = [(title(method), [_failure(one, method, bad) for bad in found]) for method, found in merging.items()]
            blocks.append(
                Gallery(
                    [f"{place + 1}" for place in range(number)],
                    rows,
                    f"Split {one.split}: the {number} worst pairs of each method, and the first wrong image of each.",
                )
            )
        blocks += one.shown("worst")
        if one.neighbours:
            preferred = ("lorarar", "ziplora", "direct")
            methods = [m for m in preferred if m in one.neighbours[0].shares] or list(one.neighbours[0].shares)[:3]
            blocks.append(
                Chart(
                    charts.neighbours(one.neighbours, methods),
                    "Share of images right in a subject or style against its similarity to the nearest one of the "
                    f"training split, for {', '.join(map(title, methods))}.",
                    f"Split {one.split}: does what looks like something in the training split succeed more often? A "
                    "point is one subject or style; their number is too small to tell more than a strong effect.",
                )
            )
        blocks += one.shown("neighbours")
    return Panel("failures", "Failures", blocks)


def trusted(judge: Table | None, world: Table | None, splits: Sequence[Evidence]) -> Panel:
    """Reliability of judge and world."""
    blocks: list[Block] = []
    if judge:
        blocks.append(Shown(judge, "tables/judge.md"))
    if world:
        blocks.append(Shown(world, "tables/world.md"))
    blocks += [block for one in splits for block in one.shown("opinions", "ranking", "similarity")]
    return Panel("trust", "How far to trust the figures", blocks)


def people(found: Mapping[str, Any], paper: Mapping[str, float]) -> Panel:
    """Correlation of metrics with votes; `found` holds results.json of each kind of study."""
    blocks: list[Block] = []
    if "ratings" not in found:
        blocks.append(Text("Nobody has voted yet: `lorarar study` collects votes, data/study/README.md says how."))
    for kind, figures in found.items():
        who = "simulated raters" if figures["simulated"] else "raters"
        if figures["simulated"]:
            blocks.append(
                Text(
                    f"The {figures['n_raters']} raters below are **simulated**: they show that the path from votes to "
                    "tables works, and nothing about people."
                )
            )
        rows = [
            [*correlation(row), f"{row['n_images']} / {row['n_pairs']}", published(row, paper)]
            for row in figures["correlations"]
        ]
        if rows:
            header = [
                "", "scenario", "images of", "Pearson [95%]", "Spearman [95%]", "Kendall [95%]", "images / pairs",
                "paper: Pearson",
            ]  # fmt: skip
            notes = [f"{figures['n_votes']} votes of {figures['n_raters']} {who}. {figures['provenance']}"]
            table = Table(f"Metrics against the score of {who}", header, rows, notes)
            blocks.append(Shown(table, f"study/{kind}/results.md"))
    return Panel("study", "People", blocks if found else [])


def made(facts: Sequence[tuple[str, str]]) -> Panel:
    """Commands, versions, hashes, hours."""
    return Panel("made", "How it was made", [Facts(facts)])


def _pictures(one: Evidence, pair: tuple[str, str], methods: Sequence[str]) -> tuple[str, list[Cell]]:
    subject, style = (one.titles[name] for name in pair)
    cells = [
        Cell(one.look("subject", pair, 0), f"Reference of the subject {subject}"),
        Cell(one.look("style", pair, 0), f"Reference of the style {style}"),
    ]
    for method in methods:
        rows = one.rows[method][pair]
        share = f"{sum(row.right for row in rows)} of {len(rows)}"
        cells.append(_cell(one, method, pair, rows[0], share))
    return one.named(pair), cells


def _cell(one: Evidence, method: str, pair: tuple[str, str], row: Row, note: str) -> Cell:
    words = f"{title(method)}: {one.named(pair)}, {failures.mode(row)}"
    return Cell(one.look(method, pair, row.index), words, (row.subject_yes, row.style_yes), note)


def _failure(one: Evidence, method: str, bad: Bad) -> Cell:
    row = bad.image or one.rows[method][bad.pair][0]
    return _cell(one, method, bad.pair, row, f"{round(bad.share * bad.n)} of {bad.n}: {one.named(bad.pair)}")
