"""Counts of a recogniser's answers: the plan of prompts, and the figures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lorarar.pocket import quality
from lorarar.pocket.quality import Check
from lorarar.pocket.world.world import World

ROOT = Path(__file__).parents[2]
PICTURE = np.zeros((64, 64, 3), np.uint8)


class Scripted:
    """Gives prepared answers, one for each picture."""

    def __init__(self, *answers: dict[str, str]) -> None:
        self.answers = [SimpleNamespace(**answer) for answer in answers]

    def recognise(self, images):
        return [self.answers.pop(0) for _ in images]


def test_every_noun_subject_and_style_is_checked():
    world = World.load(ROOT)
    checks = quality.checks(world, others=4)
    groups = {name: [c for c in checks if c.group == name] for name in {c.group for c in checks}}
    assert {c.expected["noun"] for c in groups["base_plain"]} == set(world.nouns)
    assert {c.expected["subject"] for c in groups["subject_identity"]} == set(world.subjects)
    assert {c.expected["style"] for c in groups["style_own_prompt"]} == set(world.styles)
    assert len(groups["style_other_nouns"]) == 4 * len(world.styles)
    assert {c.expected["family"] for c in groups["base_styled"]} == {s.words for s in world.catalog.styles.values()}
    for check in groups["style_other_nouns"]:
        assert check.expected["noun"] != world.styles[check.adapter].noun


def test_shares_are_counted_by_group_and_head():
    recogniser = Scripted(
        {"noun": "dog", "family": "sticker"}, {"noun": "dog", "family": "plain"}, {"noun": "cat", "family": "sticker"}
    )
    both = {"noun": "dog", "family": "sticker"}
    shown = [(Check("styled", "", None, both), [PICTURE] * 2), (Check("styled", "", None, both), [PICTURE])]
    figures = quality.count(recogniser, shown)
    assert figures["styled.noun"] == figures["styled.family"] == pytest.approx(2 / 3, abs=1e-6)
    assert figures["styled.noun_n"] == 3
    assert 0 < figures["styled.noun_ci_low"] < 2 / 3 < figures["styled.noun_ci_high"] < 1


def test_a_pair_counts_subject_and_style_of_the_same_image():
    recogniser = Scripted({"subject": "dog8", "style": "glowing"}, {"subject": "dog", "style": "glowing"})
    assert quality.joint(recogniser, "dog8", "glowing", [PICTURE] * 2) == [(True, True), (False, True)]
