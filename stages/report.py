"""Stage report: tables and figures of all methods on all splits."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lorarar import pictures
from lorarar.catalog import Pair, Split, pair_name
from lorarar.controls import CONTROLS
from lorarar.errors import UserError
from lorarar.files import atomic
from lorarar.report import figures, ranking, tables
from lorarar.report.scores import MEANS, Row, by_pair, read
from stages.context import Context, collect
from stages.run import run

PAPER_TABLES = ("table_1_mars2", "table_a2_standard_metrics")


def main(context: Context) -> None:
    """Write results/<base>/{tables,figures,plots}."""
    evaluate = context.params.evaluate
    metrics = {
        split: {m: _json(context.results / "metrics" / f"{m}-{split}.json") for m in context.methods}
        for split in evaluate.splits
    }
    judge = _json(context.results / "judge.json")
    provenance = _provenance(context, judge["judge"])
    paper = yaml.safe_load(Path("data/paper_results.yaml").read_text(encoding="utf-8"))

    hidden = Path(".work") / context.base / "report"
    shutil.rmtree(hidden, ignore_errors=True)
    for split, by_method in metrics.items():
        # The paper's tables are about the test split, one of them about KOALA, the others about SDXL.
        named = ("table_3_mars2_koala_700m", "") if context.base == "koala" else PAPER_TABLES
        mars2, similarity = (paper.get(name, {}) if split == "test" else {} for name in named)
        rows = {name: read(context.artifacts / "score" / f"{name}-{split}.parquet") for name in context.methods}
        right = {name: _right(of) for name, of in rows.items()}
        pairs = context.pairs(split)
        subjects, styles = ({member.name: member.title for member in members} for members in zip(*pairs, strict=True))
        resampling = (context.seed("score"), context.knobs.score.resamples)
        made = {
            "mars2": tables.mars2_table(by_method, mars2, split, judge, provenance),
            "similarity": tables.similarity_table(by_method, similarity, split, judge, provenance),
            "differences": tables.differences_table(right, by_method, split, *resampling, provenance),
            "mars2-by-subject": tables.breakdown_table(right, "subject", subjects, split, *resampling, provenance),
            "mars2-by-style": tables.breakdown_table(right, "style", styles, split, *resampling, provenance),
        }
        merged = {name: of for name, of in rows.items() if name not in CONTROLS}
        if len(merged) > 1:
            views = _views(context, split, merged)
            made["ranking"] = ranking.ranking_table(ranking.headline(merged), views, split, judge, provenance)
        for name, text in made.items():
            _write(hidden / f"tables/{name}-{split}.md", text)
        figures.chart(hidden / f"figures/mars2-{split}.png", by_method, f"MARS² on {context.base}, split {split}")
        _grid(context, hidden / f"figures/grid-{split}.webp", split, pairs)
        # One pair for each subject, each with another style: small enough for a first look.
        of_subject, of_style = list(subjects), list(styles)
        few = [pair for pair in pairs if of_subject.index(pair[0].name) % len(of_style) == of_style.index(pair[1].name)]
        _grid(context, hidden / f"figures/overview-{split}.webp", split, few)
    for kind in ("tables", "figures"):
        collect(context.results / kind, {path.name: path for path in sorted((hidden / kind).iterdir())})
    _plot(context.results / "plots" / "methods.csv", metrics)


def _right(rows: Sequence[Row]) -> tables.Right:
    return {pair: [row.right for row in of] for pair, of in by_pair(rows).items()}


def _views(context: Context, split: str, rows: Mapping[str, Sequence[Row]]) -> list[ranking.View]:
    """All other ways to rank the methods: by scores and seeds, and what stages ranking and quality found."""
    found = ranking.other_scores(rows)
    found += [ranking.View(**view) for view in _json(context.results / "ranking.json")[split]]
    known = _json(context.results / "quality.json")["pairs"]
    both = {method: known[f"{method}-{split}"] for method in rows if f"{method}-{split}" in known}
    if len(both) == len(rows):
        scores = {method: figures["both"] for method, figures in both.items()}
        number = min(figures["n_images"] for figures in both.values())
        found.append(ranking.View("judge", "the recogniser (has seen the truth: a check, no judge)", scores, number))
    return [*found, *ranking.by_seed(rows)]


def _grid(context: Context, path: Path, split: Split, pairs: list[Pair]) -> None:
    """First image of every method, whether it is a good one or not, beside the references."""
    methods = context.methods
    rows = []
    for subject, style in pairs:
        name = pair_name(subject, style)
        cells = [pictures.read(context.pictures(member)[0]) for member in (subject, style)]
        cells += [pictures.read(context.artifacts / "generate" / m / split / name / "00.png") for m in methods]
        rows.append((f"{subject.title} in {style.title}", cells))
    figures.grid(path, ["Subject", "Style", *map(tables.title, methods)], rows)


def _plot(path: Path, metrics: Mapping[Any, Mapping[str, Mapping[str, float]]]) -> None:
    """The bars of `dvc plots show`."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = ["mars2_average", "mars2_best", *MEANS]
        writer.writerow(["method", *names])
        for split, by_method in metrics.items():
            for method, values in by_method.items():
                writer.writerow([f"{method} ({split})", *(values[name] for name in names)])


def _provenance(context: Context, judge: str) -> tables.Provenance:
    """Hashes of all that dvc.lock says went into the stages before this one."""
    try:
        stages = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"dvc.lock: cannot be read ({error!r}); run this stage by `dvc repro report`") from None
    used = [stage for name, stage in stages.items() if name.partition("@")[0] not in ("base", "study", "report")]
    read = {item["path"]: item.get("md5") for stage in used for item in stage.get("deps", [])}
    code = {path: md5 for path, md5 in read.items() if path.startswith(("lorarar/", "stages/", "slurm/"))}
    data = {path: md5 for path, md5 in read.items() if path.startswith("data/")}
    params = {
        "seed": context.params.seed,
        "evaluate": context.params.evaluate.model_dump(),
        **context.knobs.model_dump(),
    }
    return tables.Provenance(context.base, context.params.seed, _short(params), _short(code), _short(data), judge)


def _short(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); run `dvc repro`") from None


def _write(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
