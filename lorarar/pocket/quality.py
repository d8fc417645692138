"""Measures the miniature world: a recogniser names its pictures, and right answers are counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorarar.pocket.recogniser import Recogniser
from lorarar.pocket.world.world import World
from lorarar.scoring.statistics import wilson


@dataclass(frozen=True)
class Check:
    """One prompt with the right answers about its images: `expected` maps heads of the recogniser to them.

    Attributes
    ----------
    group : the figure it counts towards.
    adapter : name of the bank's adapter to apply, if any.
    """

    group: str
    prompt: str
    adapter: str | None
    expected: dict[str, str]


def checks(world: World, others: int) -> list[Check]:
    """Prompts for the base's nouns and families, every subject's LoRA, and every style's on its own and other nouns.

    Parameters
    ----------
    others : further nouns on which each style is tried.
    """
    nouns, catalog = list(world.nouns), world.catalog
    words = list(dict.fromkeys(style.words for style in catalog.styles.values()))
    found = [Check("base_plain", f"a {noun}", None, {"noun": noun}) for noun in nouns]
    for number, noun in enumerate(nouns):
        for family in (words[number % len(words)], words[(number + 7) % len(words)]):
            expected = {"noun": noun, "family": family}
            found.append(Check("base_styled", f"a {noun} in {family} style", None, expected))
    for subject in catalog.subjects.values():
        found.append(Check("subject_identity", subject.prompt, subject.name, {"subject": subject.name}))
    for number, style in enumerate(catalog.styles.values()):
        found.append(Check("style_own_prompt", style.prompt, style.name, {"style": style.name}))
        strange = [noun for noun in nouns if noun != world.styles[style.name].noun]
        for step in range(others):
            noun = strange[(5 * number + 11 * step) % len(strange)]
            expected = {"style": style.name, "noun": noun}
            found.append(Check("style_other_nouns", f"a {noun} in {style.words} style", style.name, expected))
    return found


def count(recogniser: Recogniser, shown: Sequence[tuple[Check, Sequence[np.ndarray]]]) -> dict[str, float]:
    """Share of right answers for each group and head, with its Wilson interval and the number of images."""
    answers: dict[str, list[bool]] = defaultdict(list)
    for check, images in shown:
        for recognition in recogniser.recognise(images):
            for head, right in check.expected.items():
                answers[f"{check.group}.{head}"].append(getattr(recognition, head) == right)
    figures: dict[str, float] = {}
    for name, found in answers.items():
        figures |= wilson(sum(found), len(found)).named(name) | {f"{name}_n": len(found)}
    return figures


def joint(recogniser: Recogniser, subject: str, style: str, images: Sequence[np.ndarray]) -> list[tuple[bool, bool]]:
    """(subject is right, style is right) for each image."""
    return [(r.subject == subject, r.style == style) for r in recogniser.recognise(images)]
