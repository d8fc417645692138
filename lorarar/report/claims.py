"""The paper's claim under test: LoRA.rar beats every competitor of its Table 1 on MARS²."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lorarar.report.tables import PAPER_NAMES, Provenance, Right, Table, difference
from lorarar.scoring.statistics import Interval
from lorarar.tables import signed, title

SUBJECT = "lorarar"
"""The method whose claim is examined."""
Verdict = Literal["confirmed", "refuted", "open"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Claim:
    """LoRA.rar against one competitor, by MARS² average.

    Attributes
    ----------
    difference : difference here, on the same pairs; None if one of the two was not evaluated.
    published : the paper's difference.
    n_pairs, n_images : numbers of pairs and images that were compared.
    """

    competitor: str
    difference: Interval | None
    published: float
    n_pairs: int = 0
    n_images: int = 0

    @property
    def verdict(self) -> Verdict:
        """Confirmed or refuted if the interval lies entirely on one side of 0, else open."""
        if self.difference is None or self.difference.low <= 0 <= self.difference.high:
            return "open"
        return "confirmed" if self.difference.low > 0 else "refuted"


def examine(
    right: Mapping[str, Right], paper: Mapping[str, Mapping[str, float]], seed: int, resamples: int
) -> list[Claim]:
    """The claim against each competitor of the paper, in the paper's order.

    Parameters
    ----------
    right : method -> the judge's answers, for the same pairs.
    paper : Table 1, name in the paper -> average and best.
    seed, resamples : for the intervals.
    """
    methods = {name: method for method, name in PAPER_NAMES.items()}
    claims = []
    for name, figures in paper.items():
        competitor = methods.get(name, name)
        if competitor == SUBJECT:
            continue
        published = round(paper[SUBJECT]["average"] - figures["average"], 6)
        if SUBJECT not in right or competitor not in right:
            claims.append(Claim(competitor, None, published))
            continue
        ours = right[SUBJECT]
        found = difference(ours, right[competitor], seed, resamples)
        rounded = Interval(*(round(value, 6) for value in found))  # rounding errors near 0 are 0
        claims.append(Claim(competitor, rounded, published, len(ours), sum(map(len, ours.values()))))
    return claims


def overall(claims: Sequence[Claim]) -> Verdict:
    """Verdict on the whole claim, "LoRA.rar beats all of them": one better competitor refutes it."""
    verdicts = {claim.verdict for claim in claims}
    return "refuted" if "refuted" in verdicts else "open" if "open" in verdicts else "confirmed"


def table(claims: Sequence[Claim], split: str, provenance: Provenance) -> Table:
    """One row for each competitor, with the verdict."""
    rows = []
    for claim in claims:
        row = [title(claim.competitor), claim.verdict, "not evaluated", "", f"{claim.published:+.2f}"]
        if claim.difference:
            row[2:4] = [signed(claim.difference), f"{claim.n_images} / {claim.n_pairs}"]
        rows.append(row)
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    notes = [
        f'The claim as a whole, "LoRA.rar beats every one of them": **{overall(claims)}** '
        f"({', '.join(f'{number} {verdict}' for verdict, number in counts.items())}). It is confirmed against a "
        "competitor if the whole interval lies above 0, refuted if below, else open. Intervals are of 95%, each for "
        "itself, and resample whole pairs, the same ones for both methods; no correction is made for their number.",
        "What is compared with the paper is the sign of a difference: its values are from SDXL and another judge.",
    ]
    header = ["LoRA.rar against", "verdict", "difference here [95%]", "images / pairs", "paper's difference"]
    return Table(f"The claim on the split {split}", header, rows, notes, str(provenance))
