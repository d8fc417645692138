"""Tables of an experiment: CSV for programs, Markdown for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

from experiments.experiment import ELSEWHERE, Experiment, Setting
from lorarar.files import atomic
from lorarar.report.tables import PAPER_NAMES, interval, signed, title
from lorarar.scoring import crossed
from lorarar.scoring.statistics import Interval, rank_agreement, spread

FIGURES = ("mars2_average", "mars2_best", "subject", "style", "clip_i", "dino", "clip_t")
CHANGE = ("change", "change_ci_low", "change_ci_high")
"""Columns of the CSV: MARS² average less that of the first setting on the same pairs."""
LOSS = ("loss", "loss_content", "loss_style")
"""Columns of the CSV: the hypernetwork's loss at the end of training, and two of its terms."""
COUNTS = ("n_images", "n_pairs")
ORIGIN = ("params", "commit", "revision")
INTERVALS = tuple(f"{name}{end}" for name in FIGURES for end in ("", "_ci_low", "_ci_high"))
COLUMNS = ("setting", "method", "split", *INTERVALS, *CHANGE, *COUNTS, *LOSS, *ORIGIN)

Rows = Sequence[tuple[Setting, Mapping[str, Any]]]
"""Finished settings with their records."""


def write(experiment: Experiment, rows: Rows) -> Path:
    """Write results/<base>/experiments/<name>.{csv,md} and perhaps .png; return the Markdown file."""
    out = Path("results") / experiment.base / "experiments" / experiment.name
    results = _results(experiment, rows)
    with atomic(out.with_suffix(".csv")) as temporary:
        pd.DataFrame(results, columns=COLUMNS).to_csv(temporary, index=False, lineterminator="\n")
    with atomic(out.with_suffix(".md")) as temporary:
        temporary.write_text(_markdown(experiment, rows, results), encoding="utf-8")
    if experiment.figure and len(rows) > 1:
        _chart(out.with_suffix(".png"), experiment, experiment.figure, rows)
    return out.with_suffix(".md")


def table(rows: pd.DataFrame, left: int) -> str:
    """Markdown of a table of strings; the first `left` columns are aligned to the left, the others to the right."""
    lines = [rows.columns, ["---"] * left + ["---:"] * (len(rows.columns) - left), *rows.to_numpy()]
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _results(experiment: Experiment, rows: Rows) -> list[dict[str, Any]]:
    """One row of the CSV for each setting, method and split, with `versus`, the unrounded change."""
    results = []
    for setting, facts in rows:
        for name, method, split in _evaluated(experiment):
            figures, versus = facts["figures"][name], _change(facts["figures"][name], rows[0][1]["figures"][name])
            result: dict[str, Any] = {"setting": setting.label, "method": method, "split": split, "versus": versus}
            result |= {column: figures[column] for column in (*INTERVALS, *COUNTS)}
            result |= {column: facts[column] for column in ORIGIN}
            results.append(result | (versus.named(CHANGE[0]) if versus else {}) | _loss(method, facts))
    return results


def _evaluated(experiment: Experiment) -> list[tuple[str, str, str]]:
    """(name in the records, method, split)."""
    return [(f"{method}-{split}", method, split) for method in experiment.methods for split in experiment.splits]


def _loss(method: str, facts: Mapping[str, Any]) -> dict[str, float]:
    """Loss of the hypernetwork, for the method that it makes."""
    return facts["loss"] if method == "lorarar" and facts["loss"] else {}


def _change(figures: Mapping[str, Any], first: Mapping[str, Any]) -> Interval | None:
    """Change of MARS² average against the first setting; None if that has other pairs."""
    if not figures["right"].keys() <= first["right"].keys():
        return None
    later, earlier = ({_pair(name): one["right"][name] for name in figures["right"]} for one in (figures, first))
    return crossed.difference(later, earlier).interval()


def _pair(name: str) -> tuple[str, str]:
    subject, _, style = name.partition("+")
    return subject, style


def _markdown(experiment: Experiment, rows: Rows, results: Sequence[Mapping[str, Any]]) -> str:
    """The table, and the notes that are needed to read it."""
    several, first = len(experiment.settings) > 1, rows[0][0].label
    trained = any("loss" in result for result in results)
    cells = pd.DataFrame([_cells(experiment, result, first, several, trained) for result in results])
    notes = "Intervals are over subjects and styles; they tell nothing of other seeds."
    if several:
        notes += f" Changes are against *{first}*, on the same pairs and seeds of images."
    paragraphs = [f"# {experiment.question}", table(cells, 3), notes]
    if trained:
        paragraphs.append("Loss: of Eq. 3 as the setting has it, mean over the last quarter of the training's steps.")
    if experiment.replicates and len(rows) > 1:
        paragraphs += [text for split in experiment.splits for text in _agreement(experiment, rows, split)]
    done = {setting.label for setting, _ in rows}
    if left := [setting.label for setting in experiment.settings if setting.label not in done]:
        paragraphs.append(f"Not run yet: {'; '.join(left)}.")
    given = [f"-S {key}={value}" for key, value in experiment.given.items() if key not in ELSEWHERE]
    command = " ".join(["python -m experiments", experiment.name, *given])
    commits = ", ".join(f"`{name}`" for name in sorted({facts["commit"] for _, facts in rows}))
    minutes = sum(facts["seconds"] for _, facts in rows) / 60
    paragraphs.append(f"Made by `{command}`: base `{experiment.base}`, commit {commits}; {minutes:.0f} minutes.")
    return "\n\n".join(paragraphs) + "\n"


def _cells(
    experiment: Experiment, result: Mapping[str, Any], first: str, several: bool, trained: bool
) -> dict[str, str]:
    """Heading -> cell of one line."""
    setting, method, versus = result["setting"], result["method"], result["versus"]
    cells = {"Setting": setting, "Method": title(method), "Split": result["split"]}
    cells |= {f"MARS² {name} [95%]": interval(result, f"mars2_{name}") for name in ("average", "best")}
    if several:
        change = signed(versus) if versus else "other pairs"
        cells["change of the average [95%]"] = "" if setting == first else change
    shown = zip(("subject", "style", "CLIP-I", "DINO", "CLIP-T"), FIGURES[2:], strict=True)
    cells |= {heading: f"{result[name]:.3f}" for heading, name in shown}
    if trained:
        loss = "{loss:.1f} ({loss_content:.1f}, {loss_style:.1f})"
        cells["loss (content, style)"] = loss.format(**result) if "loss" in result else ""
    cells |= {name.removeprefix("n_"): f"{result[name]:.0f}" for name in COUNTS}
    if paper := experiment.paper:
        known = paper.get(setting) or paper.get(PAPER_NAMES.get(method, method)) or {}
        cells |= {f"paper: {name}": f"{known[name]:.2f}" if known else "" for name in ("average", "best")}
    return cells


def _agreement(experiment: Experiment, rows: Rows, split: str) -> list[str]:
    """Spread of each method over the settings, and how well their rankings agree."""
    averages = {
        setting.label: {m: facts["figures"][f"{m}-{split}"]["mars2_average"] for m in experiment.methods}
        for setting, facts in rows
    }
    lines = []
    for method in experiment.methods:
        over = spread({label: values[method] for label, values in averages.items()})
        moves = f"{over.mean:.3f}, deviation {over.deviation:.3f}, from {over.low:.3f} to {over.high:.3f}"
        lines.append(f"- {title(method)}: MARS² average {moves}")
    if len(experiment.methods) > 1:
        taus = list(rank_agreement(averages).values())
        found = f"{mean(taus):.2f}, from {min(taus):.2f} to {max(taus):.2f} (n = {len(taus)})"
        lines.append(f"- Kendall's tau of the methods' ranking, every two settings: {found}")
    return [f"Over the {len(rows)} settings, {split}:", "\n".join(lines)]


def _chart(path: Path, experiment: Experiment, key: str, rows: Rows) -> None:
    """Draw MARS² average over one key, a line for each method and split."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(setting, facts) for setting, facts in rows if key in setting.changes]
    places = [setting.changes[key] for setting, _ in rows]
    if numeric := all(isinstance(place, (int, float)) for place in places):
        rows.sort(key=lambda row: row[0].changes[key])  # changes are against the first one, in any place
        places.sort()
    x = places if numeric else list(range(len(places)))
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, method, split in _evaluated(experiment):
        found = pd.DataFrame([facts["figures"][name] for _, facts in rows])
        y = found["mars2_average"]
        bars = [y - found["mars2_average_ci_low"], found["mars2_average_ci_high"] - y]
        label = f"{title(method)}, {split}, {found['n_pairs'][0]} pairs"
        axes.errorbar(x, y, yerr=bars, marker="o", capsize=3, label=label)
    if not numeric:
        axes.set_xticks(x, [setting.label for setting, _ in rows], rotation=30, ha="right")
    elif max(places) > 20 * (least := min(place for place in places if place > 0)):
        axes.set_xscale("symlog", linthresh=least) if min(places) == 0 else axes.set_xscale("log")
    axes.set(xlabel=key, ylabel="MARS² average, 95% over subjects and styles", ylim=(0, 1), title=experiment.question)
    axes.legend(loc="best")
    axes.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
