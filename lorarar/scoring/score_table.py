"""Scores of single images: their table on disk, and the figures that sum them up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lorarar.errors import UserError
from lorarar.files import atomic
from lorarar.scoring import crossed, mars2


@dataclass(frozen=True)
class Row:
    """Scores of one generated image.

    Attributes
    ----------
    subject_yes, style_yes : the two answers of MARS².
    subject_prob, style_prob : the judge's mean probability of yes; None if the judge gives no probabilities.
    subject_unanswered, style_unanswered : number of answers that were neither yes nor no; they count as no.
    family_yes : true if the family of styles is right; None if nothing recognises families.
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
        """Probability that both answers are yes if they are independent; None if one is not known."""
        if self.subject_prob is None or self.style_prob is None:
            return None
        return self.subject_prob * self.style_prob


ARROW: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), bool: pa.bool_(), float: pa.float64()}
ARROW |= {bool | None: pa.bool_(), float | None: pa.float64()}
SCHEMA = pa.schema([(name, ARROW[kind]) for name, kind in get_type_hints(Row).items()])
MEANS = ("clip_i", "dino", "clip_t")
COLUMNS = {"subject": "subject_yes", "style": "style_yes", "family": "family_yes"}
COLUMNS |= {name: name for name in MEANS} | {"mars2_soft": "soft"}
"""Figures that are means over images -> attribute of `Row`."""
ByPair = dict[tuple[str, str], list[Row]]


def write(path: Path | str, rows: Sequence[Row]) -> None:
    """Write rows as Parquet; equal rows give equal bytes."""
    # Not by pandas: it would add its version and the schema once more, as metadata.
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], SCHEMA), temporary)


def load(path: Path | str) -> pd.DataFrame:
    """Read any table of scores, including columns that a scorer added.

    Raises
    ------
    UserError : the file is missing or damaged, or has no rows.
    """
    try:
        table = pd.read_parquet(path, dtype_backend="pyarrow")
    except FileNotFoundError:
        raise UserError(f"{path}: no such table of scores; make it first") from None
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these two
        raise damaged(path, str(error)) from None
    if table.empty:
        raise UserError(f"{path}: no scores in it; delete it and make it again")
    return table


def damaged(path: Path | str, reason: str) -> UserError:
    """The error for a file that is not a table of scores."""
    first, _, _ = reason.partition("\n")
    return UserError(f"{path}: not a table of scores ({first}); delete it and make it again")


def read(path: Path | str) -> list[Row]:
    """Read the rows that `write` wrote.

    Raises
    ------
    UserError : as in `load`, or the columns differ from those of `Row`.
    """
    table = load(path)
    if table.dtypes.to_dict() != {name: pd.ArrowDtype(SCHEMA.field(name).type) for name in SCHEMA.names}:
        raise damaged(path, f"other columns: {', '.join(table.columns)}")
    records = table.astype(object).where(table.notna(), None).itertuples(index=False, name=None)
    return [Row(**dict(zip(SCHEMA.names, record, strict=True))) for record in records]


def by_pair(rows: Sequence[Row]) -> ByPair:
    """(subject, style) -> rows of the pair; pairs and rows keep their order."""
    pairs: ByPair = {}
    for row in rows:
        pairs.setdefault((row.subject, row.style), []).append(row)
    return pairs


def summarise(rows: Sequence[Row]) -> dict[str, float]:
    """All figures of one method on one split.

    Each mean is followed by `_ci_low` and `_ci_high`, the ends of its 95% interval over subjects and styles.
    `family` and `mars2_soft`, the mean of `Row.soft`, are included only if every image has them.

    Parameters
    ----------
    rows : in the order of generation within each pair.
    """
    pairs = by_pair(rows)
    right = {pair: [row.right for row in of] for pair, of in pairs.items()}
    values: dict[str, crossed.ByPair] = {
        "mars2_average": right,
        "mars2_best": {pair: [any(of)] for pair, of in right.items()},
        "attempts": {pair: [float(mars2.pair_attempts(of))] for pair, of in right.items()},
    }
    for name, column in COLUMNS.items():
        if all(getattr(row, column) is not None for row in rows):
            values[name] = {pair: [float(getattr(row, column)) for row in of] for pair, of in pairs.items()}
    figures: dict[str, float] = {
        "n_images": len(rows),
        "n_pairs": len(pairs),
        "unanswered": sum(row.subject_unanswered + row.style_unanswered for row in rows),
    }
    for name, value in values.items():
        figures |= crossed.mean(value).interval().named(name)
    return figures
