"""Page with the answers to all questions asked on a base: results/<base>/experiments.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.collect import CHANGE, FIGURES
from experiments.experiment import Experiment, names, read
from lorarar.report import charts, page
from lorarar.report.tables import PAPER_NAMES, Table, ends, signed, title
from lorarar.scoring.statistics import Interval

WORDS = dict(zip(FIGURES, ("MARS² average", "MARS² best", "subject", "style", "CLIP-I", "DINO", "CLIP-T"), strict=True))
COUNTED = {"split": "split", "n_pairs": "pairs", "n_images": "images"}
Row = Mapping[Any, str]
"""A line of an experiment's CSV."""


def write(base: str) -> Path:
    """Write the page from the CSVs of the base's experiments and return it."""
    folder = Path("results") / base / "experiments"
    tables = {name: folder / f"{name}.csv" for name in names()}
    asked = {
        name: pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
        for name, path in tables.items()
        if path.is_file()
    }
    settings = sum(len({row["setting"] for row in rows}) for rows in asked.values())
    out = folder.with_suffix(".html")
    page.write(
        out,
        f"Experiments on {base}",
        "Every question that was asked, each with the settings that were compared. What may be chosen is chosen on the "
        "validation split; the test split is for what was fixed before.",
        [("Questions", str(len(asked))), ("Settings", str(settings))],
        [_panel(read(name, {"base": base}), rows) for name, rows in asked.items()],
    )
    return out


def _panel(experiment: Experiment, rows: Sequence[Row]) -> page.Panel:
    first, *others = WORDS
    several = len({row["method"] for row in rows}) > 1
    one = several and len(experiment.settings) == 1  # a note names the setting
    same = all(len({row[name] for row in rows}) == 1 for name in COUNTED)  # a note gives the counts
    changes = [_change(row, rows[0]) for row in rows]
    papers = [_paper(experiment, row) for row in rows]
    lines = []
    for row, change, paper in zip(rows, changes, papers, strict=True):
        method = title(row["method"])
        label = method if one else f"{row['setting']}: {method}" if several else row["setting"]
        line = {"Method" if one else "Setting": label}
        line |= {} if same else {heading: row[name] for name, heading in COUNTED.items()}
        line |= {WORDS[first]: ends(_interval(row, first))}
        line |= {"change": change} if any(changes) else {}
        line |= {WORDS[name]: ends(_interval(row, name)) for name in others}
        line |= {"paper's average": f"{paper:.2f}" if paper is not None else ""} if any(papers) else {}
        lines.append(line)
    setting = rows[0]["setting"]
    commits = ", ".join(sorted({f"`{row['commit']}`" for row in rows}))
    missing = sorted({setting.label for setting in experiment.settings} - {row["setting"] for row in rows})
    notes = [f"Made by `python -m experiments {experiment.name}` at commit {commits}; 95% intervals over pairs."]
    notes += [f"Setting: {setting}."] if one else []
    notes += [f"Each of {rows[0]['n_images']} images of {rows[0]['n_pairs']} pairs of {rows[0]['split']}."] * same
    notes += [f"Changes are against *{setting}*, on the same pairs and seeds of images."] * any(changes)
    notes += [f"Not run yet: {'; '.join(missing)}."] if missing else []
    cells = [list(line.values()) for line in lines]
    shown = page.Shown(
        Table("Settings", list(lines[0]), cells, notes, shaded=True), f"experiments/{experiment.name}.md"
    )
    pairs = " or ".join(map(str, sorted({int(row["n_pairs"]) for row in rows})))
    published = "; diamonds are the paper's, of SDXL and another judge: compare orders, not values"
    chart = page.Chart(
        charts.settings([line[0] for line in cells], [_interval(row, first) for row in rows], papers),
        f"MARS² average of each setting of {experiment.name}",
        f"MARS² average with 95% intervals over {pairs} pairs{published if any(papers) else ''}.",
    )
    return page.Panel(experiment.name, experiment.question, [shown, chart])


def _interval(row: Row, name: str) -> Interval:
    return Interval(*(float(row[f"{name}{end}"]) for end in ("", "_ci_low", "_ci_high")))


def _paper(experiment: Experiment, row: Row) -> float | None:
    """MARS² average that the paper has for the setting or the method."""
    names = row["setting"], PAPER_NAMES.get(row["method"], row["method"])
    return next((experiment.paper[name]["average"] for name in names if name in experiment.paper), None)


def _change(row: Row, first: Row) -> str:
    """Change against the first setting; empty for that setting itself, and if the pairs differ."""
    compared = row["setting"] != first["setting"] and row.get(CHANGE[0])
    return signed(_interval(row, CHANGE[0])) if compared else ""
