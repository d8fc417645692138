"""Tables of a study's results, for people and for machines. Every table says if its raters are simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorarar.files import atomic, write_json
from lorarar.study.results import correlate, read_metrics, summarise
from lorarar.study.votes import Vote, as_csv, as_json
from lorarar.tables import TITLES, interval, markdown, title

NAMES = ("votes.csv", "votes.json", "results.json", "results.md")
SUBSETS = {"all": "all raters", "without_flagged": "without flagged raters"}


def write(
    out: Path,
    votes: Sequence[Vote],
    scores: Path | None,
    seed: int,
    resamples: int,
    paper: Mapping[str, Any] | None = None,
    provenance: str = "",
) -> None:
    """Write `NAMES` into the folder `out`.

    Parameters
    ----------
    scores : folder of the images' scores; without it no metric is correlated.
    seed, resamples : for the intervals.
    paper : published figures: `metric_human_correlation`, by metric, and `human_evaluation`.
    provenance : a sentence on the origin of votes and scores.
    """
    figures = summarise(votes, seed, resamples)
    figures["correlations"] = correlate(votes, read_metrics(scores), seed, resamples) if scores else []
    figures["provenance"] = provenance
    texts = {
        "votes.csv": as_csv(votes),
        "votes.json": as_json(votes),
        "results.md": document(figures, paper or {}, provenance),
    }
    for name, text in texts.items():
        with atomic(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_json(out / "results.json", figures)


def document(figures: Mapping[str, Any], paper: Mapping[str, Any], provenance: str) -> str:
    """All tables, as Markdown."""
    simulated = figures["simulated"]
    who = "simulated raters" if simulated else "raters"
    parts = [f"# What {figures['n_raters']} {who} prefer"]
    if simulated:
        parts.append(
            "**Nobody was asked: these raters are simulated**, by a program that knows each image's true subject and "
            "style. Their votes show that the path from votes to tables works, and nothing about people."
        )
    for scenario, subsets in figures["scenarios"].items():
        for subset, found in subsets.items():
            parts += _scenario(f"Scenario {scenario}, {SUBSETS[subset]}", found, who)
    if "human_evaluation" in paper:
        parts.append(
            "For comparison, the paper's study (Fig. 7: 25 people, 25 pairs, both scenarios, images of SDXL): LoRA.rar "
            f"better than or similar to ZipLoRA: {paper['human_evaluation']['comparable_or_better']} of the votes."
        )
    if figures["correlations"]:
        parts += _correlations(figures["correlations"], paper.get("metric_human_correlation", {}), who)
    parts += _raters(figures["raters"], who)
    parts.append(
        "Intervals are of 95%: of whole subject-style pairs resampled; of shares of options and of repeats, Wilson's. "
        "Those who voted are taken as they are: the intervals say nothing about others."
    )
    if provenance:
        parts.append(provenance)
    return "\n\n".join(parts) + "\n"


def _scenario(heading: str, found: Mapping[str, Any], who: str) -> list[str]:
    rows = [
        [
            f"{title(row['methods'][0])} against {title(row['methods'][1])}",
            *(interval(row, name) for name in ("better", "similar", "worse", "better_or_similar")),
            *(str(row[name]) for name in ("n_votes", "n_raters", "n_pairs")),
        ]
        for row in found["comparisons"]
    ]
    header = ["", "better", "similar", "worse", "better or similar", "votes", who, "pairs"]
    parts = [f"## {heading} ({who})", markdown(header, rows)]
    if found["strengths"]:
        strengths = sorted(found["strengths"], key=lambda row: -row["strength"])
        rows = [[title(row["method"]), interval(row, "strength", 3), str(row["n_votes"])] for row in strengths]
        parts.append(markdown([f"Bradley-Terry ({who})", "strength", "votes"], rows))
        parts.append(
            "Strengths sum to 1: one of .6 beats one of .2 three times in four. *Similar* is half a win for each."
        )
    elif found["comparisons"]:
        parts.append("No Bradley-Terry strengths: some methods were never compared, not even through others.")
    agreement, facts = found["agreement"], []
    if agreement["n_comparisons"]:
        facts.append(
            f"Agreement, Krippendorff's alpha: {interval(agreement, 'alpha_ordinal')} ordinal, "
            f"{interval(agreement, 'alpha_nominal')} nominal ({agreement['n_comparisons']} comparisons)."
        )
    for name, text in {
        "option_1": "Side: *Option 1* is {} of the answers other than *Similar* (n = {}).",
        "repeats_same": "Repeats: {} answered as the first time (n = {}).",
    }.items():
        if found[name]:
            facts.append(text.format(interval(found[name], "share"), found[name]["n"]))
    if "seconds" in found:
        time = found["seconds"]
        low, high = time["quartiles"]
        facts.append(f"Time: median {time['median']:.1f} s, quartiles {low:.1f} and {high:.1f} s (n = {time['n']}).")
    return [*parts, "\n".join(f"- {fact}" for fact in facts)]


def _correlations(rows: Sequence[Mapping[str, Any]], paper: Mapping[str, float], who: str) -> list[str]:
    header = ["metric", "scenario", "images", "Pearson", "Spearman", "Kendall", "n", "pairs", "paper: Pearson"]
    lines = [[*correlation(row), str(row["n_images"]), str(row["n_pairs"]), published(row, paper)] for row in rows]
    return [
        f"## Metrics against the score of {who}",
        markdown(header, lines),
        "The score of an image is the mean of 1 (better), 0 (similar) and -1 (worse) over its votes. n counts images. "
        "A dash: not defined, as all images have the same value. The paper's figures are of images of its direct merge "
        "(section 5.1), judged by people.",
    ]


def correlation(row: Mapping[str, Any]) -> list[str]:
    """Cells of a correlation: metric, scenario, images, and the three coefficients with their intervals."""
    images = "all methods" if row["images"] == "all" else title(row["images"])
    metric = TITLES.get(row["metric"], row["metric"])
    return [metric, row["scenario"], images, *(interval(row, name) for name in ("pearson", "spearman", "kendall"))]


def published(row: Mapping[str, Any], paper: Mapping[str, float]) -> str:
    """Cell of the paper's coefficient for the metric of a row; empty if there is none."""
    return f"{paper[row['metric']]:.2f}" if row["metric"] in paper else ""


def _raters(raters: Sequence[Mapping[str, Any]], who: str) -> list[str]:
    header = [who, "votes", "checks failed", "repeats alike", "Option 1 : 2", "median s", "flagged"]
    rows = [
        [
            row["rater"],
            str(row["votes"]),
            f"{row['checks_failed']} of {row['checks']}",
            f"{row['repeats_same']} of {row['repeats']}",
            f"{row['option_1']} : {row['option_2']}",
            "" if row["median_seconds"] is None else f"{row['median_seconds']:.1f}",
            "failed a check" if row["flagged"] else "",
        ]
        for row in raters
    ]
    return [f"## {who.capitalize()} one by one", markdown(header, rows)]
