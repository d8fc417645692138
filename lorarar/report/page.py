"""The report as one HTML file, without scripts and without requests to other places."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lorarar.files import atomic
from lorarar.pictures import Picture
from lorarar.report.charts import in_the_dark
from lorarar.report.tables import Table

EDGE = 128
"""Largest height and width of a picture in the page, in pixels."""


@dataclass(frozen=True)
class Text:
    """A paragraph; `**bold**`, `*italic*`, `code` and [links](elsewhere) as in tables."""

    text: str


@dataclass(frozen=True)
class Shown:
    """A table, and the place of its Markdown."""

    table: Table
    source: str


@dataclass(frozen=True)
class Chart:
    """An SVG; `alt` describes it in words, `caption` gives n, intervals and the place of its numbers."""

    svg: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Cell:
    """A picture of a gallery. `right` holds the judge's answers on subject and style; None if there are none."""

    picture: Picture
    alt: str
    right: tuple[bool, bool] | None = None
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures in rows and columns; with a text `folded`, they are hidden until the reader clicks on it."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    caption: str
    folded: str = ""


@dataclass(frozen=True)
class Facts:
    """A list of names and values."""

    rows: Sequence[tuple[str, str]]


Block = Text | Shown | Chart | Gallery | Facts


@dataclass(frozen=True)
class Panel:
    """A section; it is not shown if it has no blocks."""

    name: str
    title: str
    blocks: Sequence[Block]


def write(path: Path, heading: str, lead: str, facts: Sequence[tuple[str, str]], panels: Sequence[Panel]) -> None:
    """Write the page; equal contents give equal bytes."""
    text = _template().render(
        heading=heading, lead=lead, facts=facts, panels=[panel for panel in panels if panel.blocks]
    )
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lorarar.report", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"inline": inline, "cell": cell, "image": image, "svg": _svg, "share": share, "kind": _kind}
    environment.filters["dark"] = in_the_dark
    return environment.get_template("report.html")


def inline(text: str) -> Any:
    """HTML of a paragraph's or a cell's text."""
    from markupsafe import Markup, escape

    found = str(escape(text))
    found = re.sub(r"`([^`]+)`", r"<code>\1</code>", found)
    found = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", found)
    found = re.sub(r"(?<!\w)\*([^*]+)\*(?!\w)", r"<em>\1</em>", found)
    return Markup(re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r'<a href="\2">\1</a>', found))


def cell(text: str) -> Any:
    """HTML of a table's cell; an interval stands below its mean, so that more columns fit on the page."""
    from markupsafe import Markup

    return Markup(re.sub(r"(?<=\d) (\[[-+.\d]+, [-+.\d]+\])", r" <small>\1</small>", str(inline(text))))


def image(picture: Picture) -> str:
    """A picture as a data URI: WebP, at most `EDGE` pixels high and wide."""
    shown = Image.fromarray(np.asarray(picture))
    shown.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    shown.save(stream, format="WEBP", quality=88, method=6)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def share(cell: str) -> float | None:
    """The share at the beginning of a cell, if there is one."""
    found = re.match(r"[01]\.\d+", cell)
    return float(found[0]) if found else None


def _svg(text: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"


def _kind(block: Any) -> str:
    return type(block).__name__.lower()
