"""Image grids and charts. Equal inputs give equal bytes: there are no dates or versions inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lorarar.files import atomic
from lorarar.pictures import Picture
from lorarar.report.tables import Figures
from lorarar.tables import estimate, title

CELL = 128
GAP = 6
LABEL = 16


def grid(path: Path, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Picture]]]) -> None:
    """Draw pictures in rows and columns, as WebP: the file goes into git, and PNG would be ten times as large.

    Parameters
    ----------
    columns : headings.
    rows : a label and one picture for every column.
    """
    head = 2 * LABEL + GAP
    width = GAP + len(columns) * (CELL + GAP)
    height = head + len(rows) * (LABEL + CELL + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, heading in enumerate(columns):
        middle = GAP + column * (CELL + GAP) + CELL // 2
        draw.multiline_text((middle, head - GAP), _wrap(heading), "black", font, anchor="md", align="center")
    for row, (label, pictures) in enumerate(rows):
        top = head + row * (LABEL + CELL + GAP)
        draw.text((GAP, top + LABEL // 2), label, "black", font, anchor="lm")
        for column, picture in enumerate(pictures):
            sheet.paste(_fitted(picture), (GAP + column * (CELL + GAP), top + LABEL))
    with atomic(path) as temporary:
        sheet.save(temporary, format="WEBP", quality=90, method=6)


def chart(path: Path, metrics: Mapping[str, Figures], heading: str) -> None:
    """Bars of MARS² average and best with their 95% intervals, one group for each method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = list(metrics)
    figure = Figure(figsize=(8, 0.55 * len(methods) + 1.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for offset, name, label in ((-0.2, "mars2_average", "average"), (0.2, "mars2_best", "best")):
        means, low, high = np.array([estimate(figures, name) for figures in metrics.values()]).T
        error = np.clip([means - low, high - means], 0, None)
        axes.barh(np.arange(len(methods)) + offset, means, 0.36, xerr=error, capsize=3, label=label)
    pairs = {f"{figures['n_images']:.0f} images of {figures['n_pairs']:.0f} pairs" for figures in metrics.values()}
    axes.set_yticks(range(len(methods)), [title(method) for method in methods])
    axes.invert_yaxis()
    axes.set(
        xlim=(0, 1.02),
        xlabel=f"MARS², 95% intervals over subjects and styles; {', '.join(sorted(pairs))} each",
        title=heading,
    )
    axes.legend(loc="best")
    axes.grid(axis="x", alpha=0.3)
    FigureCanvasAgg(figure)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _fitted(picture: Picture) -> Image.Image:
    """A picture of the size of a cell: small ones are enlarged without interpolation, large ones reduced."""
    image = Image.fromarray(picture)
    method = Image.Resampling.NEAREST if max(image.size) <= CELL else Image.Resampling.LANCZOS
    return image.resize((CELL, CELL), method)


def _wrap(text: str) -> str:
    """Breaks a long heading in two near its middle."""
    words = text.split()
    if len(text) <= 16 or len(words) < 2:
        return text
    cut = min(range(1, len(words)), key=lambda k: abs(len(" ".join(words[:k])) - len(text) / 2))
    return " ".join(words[:cut]) + "\n" + " ".join(words[cut:])
