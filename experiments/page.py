"""One page with the answers to all questions that were asked on a base: results/<base>/experiments.html."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from experiments.collect import CHANGE
from experiments.experiment import Experiment, names, read
from lorarar.report import charts, page
from lorarar.report.tables import PAPER_NAMES, Table, ends, signed, title
from lorarar.scoring.statistics import Interval

WORDS = {
    "mars2_average": "MARS² average",
    "mars2_best": "MARS² best",
    "subject": "subject",
    "style": "style",
    "clip_i": "CLIP-I",
    "dino": "DINO",
    "clip_t": "CLIP-T",
}
Row = dict[str, str]
"""A line of an experiment's CSV."""


def write(base: str) -> Path:
    """Write the page anew from the CSVs of the base's experiments; return it."""
    folder = Path("results") / base / "experiments"
    panels, count = [], 0
    for name in names():
        path = folder / f"{name}.csv"
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            panels.append(_panel(read(name, {"base": base}), rows))
            count += len({row["setting"] for row in rows})
    out = folder.with_suffix(".html")
    page.write(
        out,
        f"Experiments on {base}",
        "Every question that was asked, each with the settings that were compared. What may be chosen is chosen on the "
        "validation split; the test split is for what was fixed before.",
        [("Questions", str(len(panels))), ("Settings", str(count))],
        panels,
    )
    return out


def _panel(experiment: Experiment, rows: Sequence[Row]) -> page.Panel:
    several = len({row["method"] for row in rows}) > 1
    one = several and len(experiment.settings) == 1  # then told below
    labels = [
        title(row["method"]) if one else f"{row['setting']}: {title(row['method'])}" if several else row["setting"]
        for row in rows
    ]
    averages = [_interval(row, "mars2_average") for row in rows]
    published = [
        (
            experiment.paper.get(row["setting"])
            or experiment.paper.get(PAPER_NAMES.get(row["method"], row["method"]), {})
        )
        for row in rows
    ]
    changes = [_change(row, rows[0]) for row in rows]
    compared = any(changes)
    first, *others = WORDS
    same = all(len({row[name] for row in rows}) == 1 for name in ("split", "n_pairs", "n_images"))  # then told below
    header = ["Method" if one else "Setting", *["split", "pairs", "images"] * (not same)]
    header += [WORDS[first], *["change"] * compared, *(WORDS[name] for name in others)]
    header += ["paper's average"] * any(published)
    cells = [
        [
            label,
            *([] if same else [row["split"], row["n_pairs"], row["n_images"]]),
            ends(_interval(row, first)),
            *[change] * compared,
            *(ends(_interval(row, name)) for name in others),
            *([f"{paper['average']:.2f}"] if paper else []),
        ]
        for label, row, change, paper in zip(labels, rows, changes, published, strict=True)
    ]
    commits = ", ".join(sorted({f"`{row['commit']}`" for row in rows}))
    missing = sorted({setting.label for setting in experiment.settings} - {row["setting"] for row in rows})
    notes = [f"Made by `python -m experiments {experiment.name}` at commit {commits}; 95% intervals over pairs."]
    notes += [f"Setting: {rows[0]['setting']}."] if one else []
    if same:
        notes += [f"Each of {rows[0]['n_images']} images of {rows[0]['n_pairs']} pairs of {rows[0]['split']}."]
    notes += [f"Changes are against *{rows[0]['setting']}*, on the same pairs and seeds of images."] if compared else []
    notes += [f"Not run yet: {'; '.join(missing)}."] if missing else []
    pairs = sorted({int(row["n_pairs"]) for row in rows})
    chart = page.Chart(
        charts.settings(labels, averages, [paper.get("average") for paper in published]),
        f"MARS² average of each setting of {experiment.name}",
        f"MARS² average with 95% intervals over {' or '.join(map(str, pairs))} pairs"
        + (
            "; diamonds are the paper's, of SDXL and another judge: compare orders, not values."
            if any(published)
            else "."
        ),
    )
    table = Table("Settings", header, cells, notes, shaded=True)
    return page.Panel(
        experiment.name, experiment.question, [page.Shown(table, f"experiments/{experiment.name}.md"), chart]
    )


def _interval(row: Row, name: str) -> Interval:
    return Interval(*(float(row[f"{name}{end}"]) for end in ("", "_ci_low", "_ci_high")))


def _change(row: Row, first: Row) -> str:
    """Nothing for the first setting, and where pairs are others."""
    compared = row["setting"] != first["setting"] and row.get(CHANGE[0])
    return signed(_interval(row, CHANGE[0])) if compared else ""
