"""Charts as SVG, for light and dark pages. Equal figures give equal bytes: there are no dates or versions inside."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lorarar.report.claims import Claim
from lorarar.report.coefficients import PROJECTIONS, Fitted, by_block
from lorarar.report.failures import MODES, Neighbour
from lorarar.report.tables import PAPER_NAMES, Figures, label, ordered
from lorarar.scoring.statistics import Interval
from lorarar.tables import estimate, title

INK, QUIET, FAINT = "#1d2127", "#667080", "#d8dde3"
BLUE, OCHRE, GREEN, RED, VIOLET = "#2f6db0", "#b9741a", "#3c8d5a", "#bf4d43", "#7d5ba6"
DARK = {
    INK: "#e4e7eb", QUIET: "#98a2b0", FAINT: "#363d47", BLUE: "#74abe6", OCHRE: "#e0a458", GREEN: "#6fbf8c",
    RED: "#e8847a", VIOLET: "#b79ad9",
}  # fmt: skip
"""Colour on the light page -> colour on the dark page."""
VERDICTS = {"confirmed": GREEN, "refuted": RED, "open": QUIET}
SIDES = ((BLUE, "$m_c$, content"), (OCHRE, "$m_s$, style"))
WIDTH = 7.6
"""Width of every chart in inches, so that letters have one size on the page."""
COLUMNS = 40
"""Number of columns whose coefficients are shown one by one."""


def in_the_dark(svg: str) -> str:
    """The same chart for a dark page."""
    return re.sub("|".join(DARK), lambda found: DARK[found[0]], svg)


def methods(metrics: Mapping[str, Figures], paper: Mapping[str, Mapping[str, float]]) -> str:
    """MARS² average and best with intervals; the paper's figures have a second axis."""
    names = ordered(metrics)
    published = [paper.get(PAPER_NAMES.get(name, name), {}) for name in names]

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 2 if any(published) else 1, sharey=True, squeeze=False)[0]
        places = np.arange(len(names))
        for name, offset, colour, word in (
            ("mars2_average", -0.14, BLUE, "average"),
            ("mars2_best", 0.14, OCHRE, "best"),
        ):
            found = [estimate(metrics[method], name) for method in names]
            _bars(panels[0], places + offset, found, colour, word)
            for panel in panels[1:]:
                short = name.removeprefix("mars2_")
                panel.plot(
                    [row.get(short, np.nan) for row in published], places + offset, "D", color=colour, ms=5, mfc="none"
                )
        panels[0].set_title("here, with 95% intervals")
        for panel in panels[1:]:
            panel.set_title("in the paper: SDXL, another judge")
        for panel in panels:
            panel.set(xlim=(-0.03, 1.03), xlabel="MARS²")
        panels[0].set_yticks(places, [label(name) for name in names])
        panels[0].invert_yaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)

    return _chart(draw, 0.36 * len(names) + 1.5)


def claim(claims: Sequence[Claim]) -> str:
    """Differences between LoRA.rar and each competitor, here and in the paper."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for place, one in enumerate(claims):
            colour = VERDICTS[one.verdict]
            if one.difference:
                _bars(axes, [place], [one.difference], colour)
            axes.plot([one.published], [place], "D", color=OCHRE, ms=5, mfc="none")
            verdict = one.verdict if one.difference else "open: not evaluated"
            axes.annotate(
                verdict,
                (1.01, place),
                xycoords=("axes fraction", "data"),
                va="center",
                color=colour,
                annotation_clip=False,
            )
        axes.axvline(0, color=QUIET, lw=1)
        axes.plot([], [], "o", color=QUIET, ms=5, label="here, 95% interval")
        axes.plot([], [], "D", color=OCHRE, ms=5, mfc="none", label="paper's difference")
        axes.set_yticks(range(len(claims)), [title(one.competitor) for one in claims])
        axes.set_ylim(len(claims) - 0.5, -0.5)
        axes.set_xlabel("MARS² average of LoRA.rar less that of the competitor")
        figure.legend(loc="outside lower center", ncols=2)

    return _chart(draw, 0.36 * len(claims) + 1.3)


def settings(labels: Sequence[str], averages: Sequence[Interval], published: Sequence[float | None]) -> str:
    """MARS² average of an experiment's settings, and the paper's if it has them."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        _bars(axes, range(len(labels)), averages, BLUE, "here, 95% interval")
        if any(published):
            places = [(value, place) for place, value in enumerate(published) if value is not None]
            axes.plot(*zip(*places, strict=True), "D", color=OCHRE, ms=5, mfc="none", label="the paper's")
            figure.legend(loc="outside lower center", ncols=2)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set(xlim=(-0.03, 1.03), xlabel="MARS² average")

    return _chart(draw, 0.32 * len(labels) + 0.9 + 0.3 * any(published))


def modes(found: Mapping[str, Mapping[str, Interval]]) -> str:
    """Shares of each kind of failure, one bar for each method."""
    names = ordered(found)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        left = np.zeros(len(names))
        for name, colour in zip(MODES, (GREEN, BLUE, OCHRE, QUIET), strict=True):
            width = np.array([found[method][name].mean for method in names])
            axes.barh(range(len(names)), width, 0.62, left=left, color=colour, label=name)
            left += width
        axes.set_yticks(range(len(names)), [label(name) for name in names])
        axes.set(xlim=(0, 1), xlabel="share of images")
        axes.invert_yaxis()
        axes.grid(False)
        figure.legend(loc="outside lower center", ncols=len(MODES))

    return _chart(draw, 0.32 * len(names) + 1.2)


def columns(fitted: Sequence[Fitted], seed: int) -> str:
    """Coefficients of random columns: median and range over all pairs (the paper's Figures 3 and 8)."""

    def draw(figure: Any) -> None:
        for axes, method, side, colour in _sides(figure, fitted, sharex=True, sharey="row"):
            values = method.where()[:, side]
            count = min(COLUMNS, values.shape[1])
            drawn = np.sort(np.random.default_rng(seed).choice(values.shape[1], count, replace=False))
            low, middle, high = np.quantile(values[:, drawn], (0, 0.5, 1), axis=0)
            axes.vlines(range(count), low, high, color=colour, lw=1.4, alpha=0.5)
            axes.plot(range(count), middle, ".", color=colour, ms=4)
            axes.set_xticks([])

    return _chart(draw, 1.75 * len(fitted) + 0.4)


def histograms(fitted: Sequence[Fitted]) -> str:
    """Histograms of m_c and m_s, one panel for each method and side."""

    def draw(figure: Any) -> None:
        for axes, method, side, colour in _sides(figure, fitted, sharex="row", sharey="row"):
            values = method.where()
            low, high = np.quantile(values, (0.0005, 0.9995))
            edges = np.linspace(low, max(high, low + 1e-3), 61)
            counts, _ = np.histogram(values[:, side], edges)
            axes.stairs(counts / values[:, side].size, edges, fill=True, color=colour, alpha=0.75)
            axes.set_ylabel("" if side else "share of columns")

    return _chart(draw, 1.75 * len(fitted) + 0.3)


def blocks(fitted: Sequence[Fitted]) -> str:
    """Quartiles of the coefficients in every block of the UNet, projection by projection."""
    styles = {"to_q": "o", "to_k": "^", "to_v": "v", "to_out.0": "s"}

    def draw(figure: Any) -> None:
        for axes, method, side, colour in _sides(figure, fitted, sharey="row"):
            blocks, projections = method.blocks, method.projections
            for block, projection, quantiles in by_block(method):
                place = blocks.index(block) + 0.7 * (projections.index(projection) + 0.5) / len(projections) - 0.35
                _, low, middle, high, _ = quantiles[side]
                axes.vlines(place, low, high, color=colour, lw=1.4, alpha=0.6)
                axes.plot([place], [middle], styles[projection], color=colour, ms=4)
            axes.set_xticks(range(len(blocks)), [_short(block) for block in blocks])
        for projection in dict.fromkeys(name for method in fitted for name in method.projections):
            figure.axes[0].plot([], [], styles[projection], color=QUIET, ms=4, label=PROJECTIONS[projection])
        figure.legend(loc="outside lower center", ncols=4)

    return _chart(draw, 1.75 * len(fitted) + 0.6)


def learning(curve: Mapping[str, Sequence[float]]) -> str:
    """Terms of the merging loss by step: single steps faintly, and medians of the steps around."""

    def draw(figure: Any) -> None:
        steps = curve["step"]
        names = [name for name in curve if name != "step"]
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        width = max(len(steps) // 10, 1)
        for axes, name, colour in zip(panels, names, (INK, BLUE, OCHRE, VIOLET), strict=False):
            values = pd.Series(curve[name])
            axes.plot(steps, values, color=colour, lw=0.7, alpha=0.35)
            around = values.rolling(2 * width + 1, center=True, min_periods=1).median()
            axes.plot(steps, around, color=colour, lw=1.6)
            axes.set(title=name, xlabel="step")

    return _chart(draw, 2.2)


def neighbours(found: Sequence[Neighbour], shown: Sequence[str]) -> str:
    """Share of right images against similarity to the nearest training neighbour, for the methods `shown`."""

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, kind in zip(panels, ("subject", "style"), strict=True):
            those = [one for one in found if one.kind == kind]
            for method, colour, mark in zip(shown, (BLUE, OCHRE, VIOLET), "os^", strict=False):
                values = [one.shares[method].mean for one in those]
                axes.plot([one.similarity for one in those], values, mark, color=colour, ms=5, label=title(method))
            axes.set(
                ylim=(-0.04, 1.04),
                title=f"{kind}s",
                xlabel=f"similarity to the nearest training {kind} ({'DINO' if kind == 'subject' else 'CLIP'})",
            )
        panels[0].set_ylabel("share right in it")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(shown))

    return _chart(draw, 2.9)


def _chart(draw: Callable[[Any], None], height: float) -> str:
    """An SVG of standard width in the font of the page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "lorarar",
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titlecolor": INK,
        "axes.labelcolor": QUIET,
        "axes.edgecolor": FAINT,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.use_mathtext": False,
        "grid.color": FAINT,
        "grid.linewidth": 0.6,
        "text.color": INK,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": QUIET,
        "ytick.labelcolor": INK,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        stream = io.StringIO()
        figure.savefig(
            stream,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    # The browser's font is narrower than the one that the layout was computed for.
    text = re.sub(r"font: ([\w. ]*?[\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", stream.getvalue())
    return text[text.index("<svg") :]


def _sides(figure: Any, fitted: Sequence[Fitted], **shared: Any) -> Iterator[tuple[Any, Fitted, int, str]]:
    """(axes, method, side, colour) of a panel for each method and side, with its title."""
    panels = figure.subplots(len(fitted), len(SIDES), squeeze=False, **shared)
    for row, method in zip(panels, fitted, strict=True):
        for side, (axes, (colour, word)) in enumerate(zip(row, SIDES, strict=True)):
            axes.set_title(f"{title(method.method)}: {word}")
            yield axes, method, side, colour


def _bars(axes: Any, places: npt.ArrayLike, found: Sequence[Interval], colour: str, word: str | None = None) -> None:
    means = np.array([one.mean for one in found])
    ends = np.clip([[one.mean - one.low for one in found], [one.high - one.mean for one in found]], 0, None)
    axes.errorbar(means, places, xerr=ends, fmt="o", ms=5, lw=1.6, color=colour, label=word)


def _short(block: str) -> str:
    kind, _, number = block.partition(".")
    return {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}.get(kind, kind) + (
        f" {number}" if number else ""
    )
