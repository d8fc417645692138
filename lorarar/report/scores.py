"""Scores of single images, as tables on disk, and the figures that sum them up."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from lorarar.errors import UserError
from lorarar.files import atomic
from lorarar.scoring import mars2
from lorarar.scoring.statistics import bootstrap_mean


@dataclass(frozen=True)
class Row:
    """One generated image and what the judges say of it.

    Attributes
    ----------
    subject_yes, style_yes : MARS²'s two answers; `_prob` are the judge's mean probabilities of yes.
    family_yes : right family of styles, whichever instance of it.
    clip_i, dino, clip_t : mean cosine similarity to style references, to subject references, to the prompt.
    """

    subject: str
    style: str
    index: int
    subject_yes: bool
    style_yes: bool
    subject_prob: float
    style_prob: float
    family_yes: bool
    clip_i: float
    dino: float
    clip_t: float

    @property
    def right(self) -> bool:
        return self.subject_yes and self.style_yes


TYPES = get_type_hints(Row)
MEANS = ("clip_i", "dino", "clip_t")
SHARES = {"subject": "subject_yes", "style": "style_yes", "family": "family_yes"}


def write(path: Path | str, rows: Sequence[Row]) -> None:
    """Write rows as CSV: truth values as 0 and 1, numbers with six decimals."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _text(value) for name, value in asdict(row).items()} for row in rows)


def read(path: Path | str) -> list[Row]:
    """Read what `write` wrote.

    Raises
    ------
    UserError
        The file is missing, or not such a table.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [Row(**{name: _value(name, record[name]) for name in TYPES}) for record in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a table of scores ({error!r}); delete it and run `dvc repro`") from None
    if not rows:
        raise UserError(f"{path}: no scores in it; delete it and run `dvc repro`")
    return rows


def summarise(rows: Sequence[Row], seed: int, resamples: int) -> dict[str, float]:
    """All figures of one method on one split.

    Each mean is followed by `_low` and `_high`, the ends of its 95% interval by resampling whole pairs.

    Parameters
    ----------
    rows : in the order of generation inside each pair.
    seed, resamples : of the intervals.
    """
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        pairs.setdefault((row.subject, row.style), []).append(row)
    right = [[row.right for row in pair] for pair in pairs.values()]
    values: dict[str, list[list[float]]] = {
        "mars2_average": [[float(value) for value in pair] for pair in right],
        "mars2_best": [[float(any(pair))] for pair in right],
        "attempts": [[float(mars2.pair_attempts(pair))] for pair in right],
    }
    for name, column in (SHARES | {name: name for name in MEANS}).items():
        values[name] = [[float(getattr(row, column)) for row in pair] for pair in pairs.values()]
    figures: dict[str, float] = {"n_images": len(rows), "n_pairs": len(pairs)}
    for name, by_pair in values.items():
        mean, low, high = bootstrap_mean(by_pair, seed, resamples)
        figures |= {name: round(mean, 6), f"{name}_low": round(low, 6), f"{name}_high": round(high, 6)}
    return figures


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return f"{value:.6f}" if isinstance(value, float) else value


def _value(name: str, text: str) -> Any:
    return bool(int(text)) if TYPES[name] is bool else TYPES[name](text)
