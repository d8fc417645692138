"""Tables on the reliability of the judge and of the miniature world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from lorarar.report.tables import Figures, Provenance, Table, label, ordered
from lorarar.scoring.judges import Kind
from lorarar.tables import interval

EXAMINED = {
    "balanced_accuracy": "balanced accuracy",
    "auc": "area under the ROC curve, its own probability",
    "dino_auc": "area under the ROC curve, DINO",
    "clip_i_auc": "area under the ROC curve, CLIP-I",
    "same_class_accuracy": "knows another subject of the class",
    "recoloured_accuracy": "knows the subject's shape in other colours",
    "same_family_accuracy": "knows another style of the family",
}
"""Figures of an examination that have intervals -> their descriptions."""
CHECKS = {
    "base_plain.noun": "base, plain prompt: the noun is there",
    "base_styled.noun": "base, prompt with a style: the noun is there",
    "base_styled.family": "base, prompt with a style: of its family",
    "subject_identity.subject": "subject LoRA, own prompt: the subject",
    "style_own_prompt.style": "style LoRA, own prompt: the style",
    "style_other_nouns.style": "style LoRA, other nouns: the style",
    "style_other_nouns.noun": "style LoRA, other nouns: the noun is there",
}
"""Checks of base and bank -> their descriptions."""


def judge_table(judge: Figures, provenance: Provenance) -> Table:
    """Examination of the judge, one row for each figure."""
    rows = []
    for name, words in EXAMINED.items():
        cells = []
        for kind in get_args(Kind):
            known = f"{kind}_{name}" in judge
            number = judge.get(f"{kind}_n_{name.removesuffix('_accuracy')}", judge["n"])
            cells.append(f"{interval(judge, f'{kind}_{name}', 3)} (n = {number:.0f})" if known else "")
        if any(cells):
            rows.append([words, *cells])
    errors = ", ".join(
        f"{kind}: {judge[f'{kind}_false_yes']:.1%} of the wrong pass, {judge[f'{kind}_false_no']:.1%} of the right fail"
        for kind in get_args(Kind)
    )
    notes = [
        "Questions about renderings whose answer is known, of subjects and styles of the test split as of others, that "
        f"no LoRA and no merge is trained on; intervals of 95%. Errors by {errors}. A merge's MARS² near the share of "
        "wrong ones that pass cannot be told from 0."
    ]
    return Table(
        "The judge, examined", ["", *(f"{kind} [95%]" for kind in get_args(Kind))], rows, notes, str(provenance)
    )


def world_table(found: Mapping[str, float], provenance: Provenance) -> Table:
    """Checks of the base and of single LoRAs by a recogniser that knows the truth."""
    rows = [
        [words, interval(found, name, 3), f"{found[f'{name}_n']:.0f}"]
        for name, words in CHECKS.items()
        if name in found
    ]
    notes = ["Before any merge: whether the base draws what it is asked for, and the LoRAs what they were trained on."]
    return Table(
        "Base and bank, by a recogniser that knows the truth", ["", "share [95%]", "n"], rows, notes, str(provenance)
    )


def opinions_table(
    metrics: Mapping[str, Figures], recognised: Mapping[str, Any], split: str, provenance: Provenance
) -> Table:
    """MARS² next to the recogniser's answers on the same images."""
    known = [method for method in ordered(metrics) if f"{method}-{split}" in recognised]
    rows = []
    for method in known:
        second, figures = recognised[f"{method}-{split}"], metrics[method]
        rows.append(
            [
                label(method),
                *(interval(figures, name) for name in ("mars2_average", "subject", "style")),
                *(f"{second[name]:.2f}" for name in ("both", "subject", "style")),
                f"{second['n_images']:.0f}",
            ]
        )
    header = [
        "", "judge: both [95%]", "judge: subject", "judge: style", "recogniser: both", "recogniser: subject",
        "recogniser: style", "images",
    ]  # fmt: skip
    notes = [
        "The judge compares an image with reference pictures and says yes or no; the recogniser, a classifier of this "
        "world, names the most likely of all subjects and styles, however poor the likeness. It is therefore the "
        "milder of the two. Neither trains or tunes a merge.",
    ]
    return Table(f"Two opinions on the split {split}", header, rows, notes, str(provenance), shaded=True)
