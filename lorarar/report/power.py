"""Where the variance of scores comes from, and which differences of methods a number of pairs can show."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from math import isnan, sqrt
from statistics import median

from lorarar.report.tables import Provenance, Right, Table
from lorarar.scoring.crossed import Components, components
from lorarar.tables import title

SIZES = (5, 10, 20, 40, 80)
"""Numbers of subjects, and as many styles."""
STYLES = 10  # of each subject, at most
SURE = 1.96 + 0.84  # standard errors: a two-sided test at 5% that finds the difference in 80% of cases


def table(right: Mapping[str, Right], split: str, provenance: Provenance) -> Table:
    """Components of each method's MARS² average, and the smallest differences that can be seen; for several methods."""
    rows = [[title(method), *_shares(components(values))] for method, values in right.items()]
    differences = [components(_less(first, second)) for first, second in combinations(right.values(), 2)]
    typical = Components(*(median(_least(of) for of in part) for part in zip(*differences, strict=True)))
    images = median(len(values) for values in next(iter(right.values())).values())
    seen: list[str] = []
    for size in SIZES if not any(map(isnan, typical)) else []:
        pairs = size * min(size, STYLES)
        least = SURE * sqrt(typical.variance(size, size, pairs, int(images)))
        seen.append(f"{least:.2f} with {pairs} ({size} x {size})")
    rows.append(["**a difference of two methods**", *_shares(typical)])
    notes = [
        "Standard deviation of one image's value, right or wrong, by what it comes from: its subject, its style, the "
        "pair beyond both, the image. The last row is of the difference of two methods on the same images, the median "
        "over all twos; what is hard for both cancels.",
        "The smallest difference of MARS² average that is seen in 80% of cases, at 5% and without correction, by the "
        f"number of pairs (subjects x styles), with {images:.0f} images of each: "
        f"{'; '.join(seen) or 'not known, as too few pairs share a subject or a style'}.",
        "Estimates from 5 subjects and 5 styles are rough." if len(next(iter(right.values()))) <= 25 else "",
    ]
    header = ["", "subject", "style", "pair", "image"]
    return Table(f"Power on the split {split}", header, rows, [note for note in notes if note], str(provenance))


def _less(first: Right, second: Right) -> dict[tuple[str, str], list[float]]:
    """The difference of two methods, image by image: both drew it from the same noise."""
    return {
        pair: [float(one) - float(other) for one, other in zip(values, second[pair], strict=True)]
        for pair, values in first.items()
    }


def _shares(found: Components) -> list[str]:
    return ["–" if isnan(part) else f"{sqrt(_least(part)):.2f}" for part in found]


def _least(variance: float) -> float:
    """An estimate below 0 stands for 0; one that is not known stays so."""
    return variance if isnan(variance) else max(variance, 0.0)
