"""Samples of pairs are balanced, repeatable and nested, whatever the numbers."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorarar.data.pairs import balanced
from lorarar.errors import UserError


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[str], int, int]:
    """Subjects, styles, a number of pairs that they have, and a seed."""
    subjects, styles = ([f"{kind}{i}" for i in range(draw(st.integers(1, 24)))] for kind in ("subject", "style"))
    return subjects, styles, draw(st.integers(0, len(subjects) * len(styles))), draw(st.integers(0, 9))


@given(tables())
def test_a_sample_has_its_number_of_different_pairs_and_is_balanced(table) -> None:
    subjects, styles, number, seed = table
    found = balanced(subjects, styles, number, seed)
    assert len(set(found)) == len(found) == number
    for place, names in enumerate((subjects, styles)):
        counts = Counter(pair[place] for pair in found)
        assert counts.keys() <= set(names)
        assert {counts[name] for name in names} <= {number // len(names), -(-number // len(names))}


@given(tables())
def test_a_sample_depends_on_names_and_seed_and_contains_smaller_ones(table) -> None:
    subjects, styles, number, seed = table
    found = balanced(subjects, styles, number, seed)
    assert found == sorted(found, key=lambda pair: (subjects.index(pair[0]), styles.index(pair[1])))
    shuffled = [random.Random(0).sample(names, len(names)) for names in (subjects, styles)]
    assert set(balanced(*shuffled, number, seed)) == set(found)
    assert set(balanced(subjects, styles, number // 2, seed)) <= set(found)


def test_every_pair_is_equally_likely() -> None:
    subjects, styles = ["a", "b", "c"], ["v", "w", "x", "y"]
    counts = Counter(pair for seed in range(2000) for pair in balanced(subjects, styles, 3, seed))
    assert len(counts) == 12
    assert all(abs(count - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5 for count in counts.values())


def test_the_sample_of_a_seed_stays_the_same() -> None:
    subjects, styles = ["dog", "cat", "bear"], ["ink", "oil"]
    assert balanced(subjects, styles, 3, seed=0) == [("dog", "ink"), ("cat", "ink"), ("bear", "oil")]
    assert balanced(subjects, styles, 3, seed=1) == [("dog", "oil"), ("cat", "ink"), ("bear", "ink")]


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="7 pairs are more than the 6 of 3 subjects and 2 styles"):
        balanced(["a", "b", "c"], ["x", "y"], 7)
