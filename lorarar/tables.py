"""Text of tables: Markdown, estimates with their intervals, titles of methods and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorarar.data.controls import CONTROLS
from lorarar.merging.registry import METHODS
from lorarar.scoring.statistics import Interval

TITLES = {"clip_i": "CLIP-I", "dino": "DINO", "clip_t": "CLIP-T", "mars2": "MARS²"}
"""Titles of metrics."""


def title(method: str) -> str:
    """Title of a method or control of this benchmark; a method from elsewhere keeps its name."""
    known = METHODS.get(method) or CONTROLS.get(method)
    return known.title if known else method


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], labels: int = 1) -> str:
    """A table in Markdown.

    Parameters
    ----------
    rows : cells that a row lacks at its end are empty.
    labels : number of columns, from the left, that hold words; the others hold numbers and are aligned to the right.
    """
    lines = [header, ["---"] * labels + ["---:"] * (len(header) - labels), *rows]
    filled = [[cell.replace("|", r"\|") for cell in line] + [""] * (len(header) - len(line)) for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in filled)


def estimate(figures: Mapping[str, float], name: str) -> Interval:
    """The estimate `name`, whose interval is stored under `<name>_ci_low` and `<name>_ci_high`."""
    return Interval(figures[name], figures[f"{name}_ci_low"], figures[f"{name}_ci_high"])


def interval(figures: Mapping[str, Any], name: str, digits: int = 2) -> str:
    """`ends` of an estimate; a dash if it is not defined, and no brackets if its interval is not."""
    if figures[name] is None:
        return "–"
    if figures[f"{name}_ci_low"] is None:
        return f"{figures[name]:.{digits}f}"
    return ends(estimate(figures, name), digits)


def ends(found: Interval, digits: int = 2) -> str:
    """`0.21 [0.10, 0.34]`."""
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def signed(found: Interval) -> str:
    """`+0.14 [+0.02, +0.28]`; a value that rounds to 0 has no minus."""
    mean, low, high = (f"{round(value, 2) + 0.0:+.2f}" for value in found)
    return f"{mean} [{low}, {high}]"
