"""Scores of single images, as tables on disk, and the figures that sum them up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from lorarar.errors import UserError
from lorarar.files import atomic
from lorarar.scoring import mars2
from lorarar.scoring.statistics import bootstrap_mean


@dataclass(frozen=True)
class Row:
    """One generated image and what the judges say of it.

    Attributes
    ----------
    subject_yes, style_yes : MARS²'s two answers; `_prob` are the judge's mean probabilities of yes, None where it gives
        none; `_unanswered` are numbers of answers that were neither yes nor no, which count as no.
    family_yes : right family of styles, whichever instance of it; None where nothing recognises families.
    clip_i, dino, clip_t : mean cosine similarity to style references, to subject references, to the prompt.
    """

    subject: str
    style: str
    index: int
    subject_yes: bool
    style_yes: bool
    subject_prob: float | None
    style_prob: float | None
    subject_unanswered: int
    style_unanswered: int
    family_yes: bool | None
    clip_i: float
    dino: float
    clip_t: float

    @property
    def right(self) -> bool:
        return self.subject_yes and self.style_yes

    @property
    def soft(self) -> float | None:
        """Probability that both answers are yes, as if they were independent; None where one is not known."""
        if self.subject_prob is None or self.style_prob is None:
            return None
        return self.subject_prob * self.style_prob


ARROW: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), bool: pa.bool_(), float: pa.float64()}
ARROW |= {bool | None: pa.bool_(), float | None: pa.float64()}
SCHEMA = pa.schema([(name, ARROW[kind]) for name, kind in get_type_hints(Row).items()])
MEANS = ("clip_i", "dino", "clip_t")
SHARES = {"subject": "subject_yes", "style": "style_yes", "family": "family_yes"}
ByPair = dict[tuple[str, str], list[Row]]


def write(path: Path | str, rows: Sequence[Row]) -> None:
    """Write rows as Parquet; equal rows make equal bytes."""
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], SCHEMA), temporary)


def read(path: Path | str) -> list[Row]:
    """Read what `write` wrote.

    Raises
    ------
    UserError
        The file is missing, or not such a table.
    """
    try:
        table = pq.ParquetFile(path).read()
        if table.schema != SCHEMA:
            raise ValueError(f"other columns: {', '.join(table.column_names)}")
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these two
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a table of scores ({reason}); delete it and run `dvc repro`") from None
    if not table.num_rows:
        raise UserError(f"{path}: no scores in it; delete it and run `dvc repro`")
    return [Row(**record) for record in table.to_pylist()]


def by_pair(rows: Sequence[Row]) -> ByPair:
    """(subject, style) -> its rows, pairs and rows in the order they come."""
    pairs: ByPair = {}
    for row in rows:
        pairs.setdefault((row.subject, row.style), []).append(row)
    return pairs


def summarise(rows: Sequence[Row], seed: int, resamples: int) -> dict[str, float]:
    """All figures of one method on one split.

    Each mean is followed by `_ci_low` and `_ci_high`, the ends of its 95% interval by resampling whole pairs.
    `mars2_soft`, the mean of `Row.soft`, and `family` are there only where they are known of every image.

    Parameters
    ----------
    rows : in the order of generation inside each pair.
    seed, resamples : of the intervals.
    """
    pairs = by_pair(rows).values()
    right = [[row.right for row in pair] for pair in pairs]
    values: dict[str, list[list[float]]] = {
        "mars2_average": [[float(value) for value in pair] for pair in right],
        "mars2_best": [[float(any(pair))] for pair in right],
        "attempts": [[float(mars2.pair_attempts(pair))] for pair in right],
    }
    for name, column in (SHARES | {name: name for name in MEANS}).items():
        if any(getattr(row, column) is None for row in rows):
            continue
        values[name] = [[float(getattr(row, column)) for row in pair] for pair in pairs]
    soft = [[row.soft for row in pair if row.soft is not None] for pair in pairs]
    if sum(map(len, soft)) == len(rows):
        values["mars2_soft"] = soft
    figures: dict[str, float] = {
        "n_images": len(rows),
        "n_pairs": len(pairs),
        "unanswered": sum(row.subject_unanswered + row.style_unanswered for row in rows),
    }
    for name, value in values.items():
        figures |= bootstrap_mean(value, seed, resamples).named(name)
    return figures
