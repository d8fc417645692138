"""Stage report: tables and figures of all methods on all splits, and one page with all of them."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lorarar.data.catalog import Pair, Split
from lorarar.files import atomic, write_json
from lorarar.report import figures, page, panels, tables, trust
from lorarar.scoring.score_table import MEANS
from stages.shared.context import Context, collect
from stages.shared.entry_point import run
from stages.shared.report_inputs import ReportInputs

TIMES = "times.json"
"""Measured seconds and megabytes; not among the metrics, as no two runs agree on them."""


def main(context: Context) -> None:
    """Write results/<base>/{tables,figures,plots,times.json,report.html}."""
    reader = ReportInputs(context)
    hidden = context.work / "report"
    shutil.rmtree(hidden, ignore_errors=True)
    splits = [reader.evidence(split) for split in context.params.evaluate.splits]
    judge = trust.judge_table(reader.judge, reader.provenance) if reader.judge["n"] else None
    world = trust.world_table(reader.quality["base_and_bank"], reader.provenance) if reader.quality else None
    for one in splits:
        for name, table in one.tables.items():
            if table.rows:
                _write(hidden / f"tables/{name}-{one.split}.md", str(table))
        figures.chart(
            hidden / f"figures/mars2-{one.split}.png", one.metrics, f"MARS² on {context.base}, split {one.split}"
        )
        pairs = context.pairs(cast(Split, one.split))
        _grid(hidden / f"figures/grid-{one.split}.webp", one, pairs)
        few = panels.few([(subject.name, style.name) for subject, style in pairs])
        seen = [pair for pair in pairs if (pair[0].name, pair[1].name) in few]
        _grid(hidden / f"figures/overview-{one.split}.webp", one, seen)
    for name, general in {"judge": judge, "world": world}.items():
        if general:
            _write(hidden / f"tables/{name}.md", str(general))
    for kind in ("tables", "figures"):
        collect(context.results / kind, {path.name: path for path in sorted((hidden / kind).iterdir())})
    _plot(context.results / "plots" / "methods.csv", {one.split: one.metrics for one in splits})
    write_json(context.results / TIMES, reader.times)
    page.write(
        context.results / "report.html",
        f"LoRA.rar and its competitors on {context.base}",
        "Merging a subject LoRA and a style LoRA into one: every method of the benchmark on the same unseen pairs, "
        "with its intervals, its failures and how far the judge can be trusted.",
        reader.summary(splits),
        [
            panels.results(splits),
            panels.claim(splits),
            panels.gallery(splits),
            panels.parts(splits),
            panels.failed(splits),
            panels.coefficients(splits, context.seed("report")),
            panels.cost(splits),
            panels.learning(reader.curve),
            panels.trusted(judge, world, splits),
            panels.people(reader.study, reader.paper["metric_human_correlation"]),
            panels.made(reader.facts()),
        ],
    )


def _grid(path: Path, one: panels.Evidence, pairs: list[Pair]) -> None:
    """The references and the first image of every method, good or not."""
    rows = []
    for subject, style in pairs:
        looks = [one.look(name, (subject.name, style.name), 0) for name in ("subject", "style", *one.metrics)]
        rows.append((f"{subject.title} in {style.title}", looks))
    figures.grid(path, ["Subject", "Style", *map(tables.title, one.metrics)], rows)


def _plot(path: Path, metrics: Mapping[Any, Mapping[str, Mapping[str, float]]]) -> None:
    """The bars of `dvc plots show`."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = ["mars2_average", "mars2_best", *MEANS]
        writer.writerow(["method", *names])
        for split, by_method in metrics.items():
            for method, values in by_method.items():
                writer.writerow([f"{method} ({split})", *(values[name] for name in names)])


def _write(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
