"""Balanced samples of subject-style pairs, for catalogues whose pairs are too many to evaluate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha256

from lorarar.errors import UserError


def balanced(subjects: Sequence[str], styles: Sequence[str], number: int, seed: int = 0) -> list[tuple[str, str]]:
    """Different pairs in which each subject comes equally often, and so does each style; one more or less at most.

    Parameters
    ----------
    subjects, styles
        Different names, of which every pair is allowed. Their order decides the order of the result, nothing else.
    number
        How many pairs to draw. A larger sample of the same seed contains a smaller one.
    seed
        Another seed gives another sample. Over all seeds, every pair is equally likely.

    Returns
    -------
    list of (subject, style)
        Sorted as `subjects`, then as `styles`.

    Raises
    ------
    UserError
        There are not so many pairs.
    """
    rows, columns = len(subjects), len(styles)
    if number > rows * columns:
        raise UserError(f"{number} pairs are more than the {rows * columns} of {rows} subjects and {columns} styles")
    row_order, column_order = (sorted(names, key=lambda name: _draw(seed, name)) for names in (subjects, styles))
    # A walk along the diagonals of the table: it turns in both directions at once, so both counts stay level. It comes
    # back to its first cell after lcm steps, then takes the next diagonal, until it has been in every cell once.
    turn = math.lcm(rows, columns)
    drawn = {(row_order[step % rows], column_order[(step + step // turn) % columns]) for step in range(number)}
    return [(subject, style) for subject in subjects for style in styles if (subject, style) in drawn]


def _draw(seed: int, name: str) -> bytes:
    """The place of a name in the order of a seed, the same on every machine."""
    return sha256(f"{seed}:{name}".encode()).digest()
