"""Markdown tables: this world's figures, the paper's beside them, and what they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorarar.controls import CONTROLS
from lorarar.merge.registry import METHODS

Figures = Mapping[str, float]
PAPER_NAMES = {"direct": "direct_merge"}
"""Methods that data/paper_results.yaml calls otherwise."""


@dataclass(frozen=True)
class Provenance:
    """What a table was made from: short hashes, and the seed."""

    base: str
    seed: int
    params: str
    code: str
    data: str
    judge: str

    def __str__(self) -> str:
        return (
            f"Made from: base `{self.base}`, seed {self.seed}, judge `{self.judge}`, "
            f"parameters `{self.params}`, code `{self.code}`, weights and tables in data/ `{self.data}`."
        )


def title(method: str) -> str:
    """How tables and figures call a method or a control."""
    return METHODS[method].title if method in METHODS else CONTROLS[method].title


def mars2_table(
    metrics: Mapping[str, Figures],
    paper: Mapping[str, Mapping[str, float]],
    split: str,
    judge: Figures,
    provenance: Provenance,
) -> str:
    """MARS² of every method between floors and ceiling, with the paper's Table 1 beside it.

    Parameters
    ----------
    metrics : method -> what `scores.summarise` gives, in the order of the rows.
    paper : name in the paper -> average and best.
    judge : balanced accuracies of the judge.
    """
    header = [
        "", "MARS² average [95%]", "MARS² best [95%]", "subject", "style", "family", "attempts",
        "images", "pairs", "paper: average", "paper: best",
    ]  # fmt: skip
    rows = []
    for method in _ordered(metrics):
        figures = metrics[method]
        published = paper.get(PAPER_NAMES.get(method, method), {})
        rows.append([
            _label(method), _interval(figures, "mars2_average"), _interval(figures, "mars2_best"),
            *(f"{figures[name]:.2f}" for name in ("subject", "style", "family", "attempts")),
            f"{figures['n_images']:.0f}", f"{figures['n_pairs']:.0f}",
            *(f"{published[name]:.2f}" if name in published else "" for name in ("average", "best")),
        ])  # fmt: skip
    notes = [
        "MARS² average: share of images that are right in subject and style; best: share of pairs with at "
        "least one such image; subject, style: shares right in one; family: share in the style's family, "
        "whichever instance; attempts: mean number of images drawn until the first right one, one more than "
        "there are where none is right. Intervals resample whole pairs.",
        "The judge's balanced accuracy on renderings whose answer is known "
        f"(n = {judge['n']:.0f} each): subject {judge['subject_balanced_accuracy']:.3f}, "
        f"style {judge['style_balanced_accuracy']:.3f}.",
        "The paper's figures (Table 1, SDXL, LLaVA-Critic 7B) are from another world with another judge: "
        "compare the ranking, not the values.",
        str(provenance),
    ]
    return _document(f"MARS² on the split {split}", header, rows, notes)


def similarity_table(metrics: Mapping[str, Figures], paper: Mapping[str, Mapping[str, float]], split: str,
                     provenance: Provenance) -> str:  # fmt: skip
    """CLIP-I, DINO and CLIP-T of every method, with the paper's Table A2 beside them."""
    names = ("clip_i", "dino", "clip_t")
    shown = ("CLIP-I", "DINO", "CLIP-T")
    header = [
        "",
        *(f"{name} [95%]" for name in shown),
        "images",
        "pairs",
        *(f"paper: {name}" for name in shown),
    ]
    rows = []
    for method in _ordered(metrics):
        figures = metrics[method]
        published = paper.get(PAPER_NAMES.get(method, method), {})
        rows.append([
            _label(method), *(_interval(figures, name, 3) for name in names),
            f"{figures['n_images']:.0f}", f"{figures['n_pairs']:.0f}",
            *(f"{published[name]:.3f}" if name in published else "" for name in names),
        ])  # fmt: skip
    notes = [
        "CLIP-I: mean cosine similarity to the style's picture; DINO: to the subject's pictures; CLIP-T: to "
        "the prompt without the rare token. CLIP-I and DINO reward copying a reference.",
        "The paper's figures are from another world with other models: compare the ranking, not the values.",
        str(provenance),
    ]
    return _document(f"Standard metrics on the split {split}", header, rows, notes)


def _ordered(metrics: Mapping[str, Figures]) -> list[str]:
    """Floors first, then the methods, then the ceiling."""
    order = {"floor": 0, "ceiling": 2}
    return sorted(metrics, key=lambda name: order[CONTROLS[name].bound] if name in CONTROLS else 1)


def _label(method: str) -> str:
    return f"{title(method)} ({CONTROLS[method].bound})" if method in CONTROLS else title(method)


def _interval(figures: Figures, name: str, digits: int = 2) -> str:
    mean, low, high = (figures[key] for key in (name, f"{name}_ci_low", f"{name}_ci_high"))
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _document(heading: str, header: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([f"# {heading}", table, *notes]) + "\n"
