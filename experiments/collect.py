"""From the figures of settings to a table of each experiment: CSV for programs, Markdown for people."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.experiment import ELSEWHERE, Experiment, Setting
from lorarar.files import atomic
from lorarar.report.tables import PAPER_NAMES, interval, signed, title
from lorarar.scoring.statistics import Interval, paired_difference, rank_agreement, spread

FIGURES = ("mars2_average", "mars2_best", "subject", "style", "clip_i", "dino", "clip_t")
CHANGE = ("change", "change_ci_low", "change_ci_high")
"""Of MARS² average against the first setting on the same pairs, in the CSV."""
LOSS = ("loss", "loss_content", "loss_style")
"""What training the hypernetwork minimised, and two of its terms, at the end."""
Rows = Sequence[tuple[Setting, Mapping[str, Any]]]
"""Finished settings with their records."""


def write(experiment: Experiment, rows: Rows) -> Path:
    """Write results/<base>/experiments/<name>.{csv,md} and perhaps .png; return the Markdown file."""
    out = Path("results") / experiment.base / "experiments" / experiment.name
    with atomic(out.with_suffix(".csv")) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        intervals = [f"{name}{end}" for name in FIGURES for end in ("", "_ci_low", "_ci_high")]
        origin = ("params", "commit", "revision")
        counts = ("n_images", "n_pairs")
        writer.writerow(["setting", "method", "split", *intervals, *CHANGE, *counts, *LOSS, *origin])
        for setting, facts in rows:
            for method, split, figures in _figures(experiment, facts):
                change = _change(figures, rows[0][1]["figures"][f"{method}-{split}"])
                values = [figures[name] for name in intervals]
                values += list(change.named(CHANGE[0]).values()) if change else [""] * len(CHANGE)
                values += [figures[name] for name in counts]
                values += _loss(method, facts) or [""] * len(LOSS)
                writer.writerow([setting.label, method, split, *values, *(facts[name] for name in origin)])
    with atomic(out.with_suffix(".md")) as temporary:
        temporary.write_text(markdown(experiment, rows), encoding="utf-8")
    if experiment.figure and len(rows) > 1:
        _chart(out.with_suffix(".png"), experiment, experiment.figure, rows)
    return out.with_suffix(".md")


def markdown(experiment: Experiment, rows: Rows) -> str:
    """The table, and what has to be known to read it."""
    several = len(experiment.settings) > 1
    trained = any(_loss("lorarar", facts) for _, facts in rows)
    paper = experiment.paper
    head = ["Setting", "Method", "Split", "MARS² average [95%]", "MARS² best [95%]"]
    head += ["change of the average [95%]"] * several
    head += ["subject", "style", "CLIP-I", "DINO", "CLIP-T", *["loss (content, style)"] * trained, "images", "pairs"]
    head += ["paper: average", "paper: best"] * bool(paper)
    lines = [f"# {experiment.question}", "", row(head), row(["---"] * 3 + ["---:"] * (len(head) - 3))]
    for setting, facts in rows:
        for method, split, figures in _figures(experiment, facts):
            cells = [setting.label, title(method), split, *(interval(figures, name) for name in FIGURES[:2])]
            if several:
                change = _change(figures, rows[0][1]["figures"][f"{method}-{split}"])
                cells.append("" if facts is rows[0][1] else signed(change) if change else "other pairs")
            cells += [f"{figures[name]:.3f}" for name in FIGURES[2:]]
            if trained:
                loss = _loss(method, facts)
                cells.append("{:.1f} ({:.1f}, {:.1f})".format(*loss) if loss else "")
            cells += [f"{figures[name]:.0f}" for name in ("n_images", "n_pairs")]
            if paper:
                known = paper.get(setting.label) or paper.get(PAPER_NAMES.get(method, method)) or {}
                cells += [f"{known[name]:.2f}" if known else "" for name in ("average", "best")]
            lines.append(row(cells))
    lines += ["", "Intervals resample whole pairs; they tell nothing of other seeds."]
    if several:
        lines[-1] += f" Changes are against *{rows[0][0].label}*, on the same pairs and seeds of images."
    if trained:
        lines += ["", "Loss: of Eq. 3 as the setting has it, mean over the last quarter of the training's steps."]
    lines += [text for split in experiment.splits for text in _agreement(experiment, rows, split)]
    if len(rows) < len(experiment.settings):
        left = [s.label for s in experiment.settings if s.label not in {setting.label for setting, _ in rows}]
        lines += ["", f"Not run yet: {'; '.join(left)}."]
    revisions = sorted({facts["commit"] for _, facts in rows})
    origin = f"base `{experiment.base}`, commit {', '.join(f'`{name}`' for name in revisions)}"
    given = {key: value for key, value in experiment.given.items() if key not in ELSEWHERE}
    seconds = sum(facts["seconds"] for _, facts in rows)
    command = " ".join(
        ["python -m experiments", experiment.name, *(f"-S {key}={value}" for key, value in given.items())]
    )
    lines += ["", f"Made by `{command}`: {origin}; {seconds / 60:.0f} minutes."]
    return "\n".join(lines) + "\n"


def _figures(experiment: Experiment, facts: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    names = [(method, split) for method in experiment.methods for split in experiment.splits]
    return [(method, split, facts["figures"][f"{method}-{split}"]) for method, split in names]


def _loss(method: str, facts: Mapping[str, Any]) -> list[float] | None:
    """Of the hypernetwork, if the method is made by one and it was recorded."""
    return [facts["loss"][term] for term in LOSS] if method == "lorarar" and facts.get("loss") else None


def _change(figures: Mapping[str, Any], first: Mapping[str, Any]) -> Interval | None:
    """Of MARS² average, against the first setting; None if that has other pairs."""
    if not figures["right"].keys() <= first["right"].keys():
        return None
    later, earlier = ([one["right"][pair] for pair in figures["right"]] for one in (figures, first))
    return paired_difference(later, earlier, 0)


def _agreement(experiment: Experiment, rows: Rows, split: str) -> list[str]:
    """Of settings that repeat one another: how far each method moves, and whether the ranking stays."""
    if not experiment.replicates or len(rows) < 2:
        return []
    averages = {
        setting.label: {m: facts["figures"][f"{m}-{split}"]["mars2_average"] for m in experiment.methods}
        for setting, facts in rows
    }
    lines = ["", f"Over the {len(rows)} settings, {split}:", ""]
    for method in experiment.methods:
        over = spread({label: values[method] for label, values in averages.items()})
        moves = f"{over.mean:.3f}, deviation {over.deviation:.3f}, from {over.low:.3f} to {over.high:.3f}"
        lines.append(f"- {title(method)}: MARS² average {moves}")
    if len(experiment.methods) > 1:
        taus = list(rank_agreement(averages).values())
        found = f"{mean(taus):.2f}, from {min(taus):.2f} to {max(taus):.2f} (n = {len(taus)})"
        lines.append(f"- Kendall's tau of the methods' ranking, every two settings: {found}")
    return lines


def row(cells: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _chart(path: Path, experiment: Experiment, key: str, rows: Rows) -> None:
    """MARS² average over one key, a line for each method and split."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(setting, facts) for setting, facts in rows if key in setting.changes]
    places = [setting.changes[key] for setting, _ in rows]
    if numeric := all(isinstance(place, (int, float)) for place in places):
        rows.sort(key=lambda row: row[0].changes[key])  # the first one is what others are compared with
        places.sort()
    x = places if numeric else list(range(len(places)))
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for method in experiment.methods:
        for split in experiment.splits:
            found = [facts["figures"][f"{method}-{split}"] for _, facts in rows]
            y = [figures["mars2_average"] for figures in found]
            low = [figures["mars2_average"] - figures["mars2_average_ci_low"] for figures in found]
            high = [figures["mars2_average_ci_high"] - figures["mars2_average"] for figures in found]
            label = f"{title(method)}, {split}, {found[0]['n_pairs']} pairs"
            axes.errorbar(x, y, yerr=[low, high], marker="o", capsize=3, label=label)
    if not numeric:
        axes.set_xticks(x, [setting.label for setting, _ in rows], rotation=30, ha="right")
    elif max(places) > 20 * (least := min(place for place in places if place > 0)):
        axes.set_xscale("symlog", linthresh=least) if min(places) == 0 else axes.set_xscale("log")
    axes.set(xlabel=key, ylabel="MARS² average, 95% over pairs", ylim=(0, 1), title=experiment.question)
    axes.legend(loc="best")
    axes.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
