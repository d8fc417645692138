"""The paper's claim under test: LoRA.rar beats every competitor of its Table 1 on MARS²."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from lorarar.report.tables import PAPER_NAMES, Provenance, Right, Table
from lorarar.scoring import crossed
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
    p : p-value of no difference, corrected for the number of competitors (Holm).
    n_pairs, n_images : numbers of pairs and images that were compared.
    """

    competitor: str
    difference: Interval | None
    published: float
    p: float = 1.0
    n_pairs: int = 0
    n_images: int = 0

    @property
    def verdict(self) -> Verdict:
        """Confirmed or refuted, by the sign of the difference, if its corrected p-value is below .05; else open."""
        if self.difference is None or not self.p < 0.05:
            return "open"
        return "confirmed" if self.difference.mean > 0 else "refuted"


def examine(right: Mapping[str, Right], paper: Mapping[str, Mapping[str, float]]) -> list[Claim]:
    """The claim against each competitor of the paper, in the paper's order.

    Parameters
    ----------
    right : method -> the judge's answers, for the same pairs.
    paper : Table 1, name in the paper -> average and best.
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
        found = crossed.difference(ours, right[competitor])
        rounded = Interval(*(round(value, 6) for value in found.interval()))  # rounding errors near 0 are 0
        claims.append(Claim(competitor, rounded, published, found.p, len(ours), sum(map(len, ours.values()))))
    known = [claim for claim in claims if claim.difference]
    corrected = dict(zip(map(id, known), crossed.holm([claim.p for claim in known]), strict=True))
    return [replace(claim, p=corrected.get(id(claim), claim.p)) for claim in claims]


def overall(claims: Sequence[Claim]) -> Verdict:
    """Verdict on the whole claim, "LoRA.rar beats all of them": one better competitor refutes it."""
    verdicts = {claim.verdict for claim in claims}
    return "refuted" if "refuted" in verdicts else "open" if "open" in verdicts else "confirmed"


def table(claims: Sequence[Claim], split: str, provenance: Provenance) -> Table:
    """One row for each competitor, with the verdict."""
    rows = []
    for claim in claims:
        row = [title(claim.competitor), claim.verdict, "not evaluated", "", "", f"{claim.published:+.2f}"]
        if claim.difference:
            row[2:5] = [signed(claim.difference), f"{claim.p:.3f}", f"{claim.n_images} / {claim.n_pairs}"]
        rows.append(row)
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    notes = [
        f'The claim as a whole, "LoRA.rar beats every one of them": **{overall(claims)}** '
        f"({', '.join(f'{number} {verdict}' for verdict, number in counts.items())}). It is confirmed against a "
        "competitor if the difference is above 0 and its p-value, corrected for the number of competitors (Holm), is "
        "below .05; refuted if it is below 0 likewise; else open. Intervals are of 95%, each for itself, over subjects "
        "and styles, on the same pairs for both methods.",
        "What is compared with the paper is the sign of a difference: its values are from SDXL and another judge.",
    ]
    header = [
        "LoRA.rar against",
        "verdict",
        "difference here [95%]",
        "p (Holm)",
        "images / pairs",
        "paper's difference",
    ]
    return Table(f"The claim on the split {split}", header, rows, notes, str(provenance))
