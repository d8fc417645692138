"""The miniature world: everything in the catalogue is drawn, and its base never learns from what the bank holds."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from skimage.color import deltaE_cie76, rgb2lab

from lorarar.pocket.styles import FAMILIES, SIZE
from lorarar.pocket.world import LOOK_MARGIN, PALETTE_MARGIN, World

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world() -> World:
    return World.load(ROOT)


@pytest.fixture(scope="module")
def samples(world: World):
    rng = np.random.default_rng(5)
    return [world.sample(rng) for _ in range(300)]


def apart(a, b) -> np.ndarray:
    """CIE76 distance of RGB colours, by scikit-image."""
    return deltaE_cie76(rgb2lab(np.asarray(a, float)), rgb2lab(np.asarray(b, float)))


def test_every_entry_of_the_catalogue_is_drawn(world):
    assert list(world.subjects) == list(world.catalog.subjects)
    assert list(world.styles) == list(world.catalog.styles)
    assert {style.words for style in world.catalog.styles.values()} == set(FAMILIES) - {"plain"}
    for name in world.subjects:
        picture = world.picture(name, 0)
        assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8 and picture.std() > 15


def test_the_classes_and_the_style_pictures_objects_are_nouns_of_the_base(world):
    assert {subject.class_name for subject in world.catalog.subjects.values()} <= set(world.nouns)
    for style in world.styles.values():
        assert style.art.code in world.nouns[style.noun]


def test_every_word_of_every_prompt_is_in_the_vocabulary(world):
    catalog = world.catalog
    prompts = [catalog.pair_prompt(s, t) for s in catalog.subjects.values() for t in catalog.styles.values()]
    prompts += [style.prompt for style in catalog.styles.values()]
    assert {word for prompt in prompts for word in prompt.lower().split()} <= set(world.vocabulary)


def test_no_subjects_glyph_is_shown_to_base_or_judges(world, samples):
    own = {subject.art.code for subject in world.subjects.values()}
    assert len(own) == len(world.subjects)
    assert own.isdisjoint(code for codes in world.nouns.values() for code in codes)
    assert own.isdisjoint(world.strangers)
    assert own.isdisjoint(sample.glyph for sample in samples)


def test_the_bases_palettes_keep_their_distance_from_every_subjects(world, samples):
    for sample in samples:
        shown = min(2, len(world.subjects["dog8"].palette), _fills(sample.glyph))
        for subject in world.subjects.values():
            assert apart(sample.palette[:shown], subject.palette[:shown]).max() >= PALETTE_MARGIN


def test_the_bases_looks_keep_their_distance_from_every_style(world, samples):
    for sample in samples:
        for style in world.styles.values():
            if style.look.family == sample.family:
                ours, theirs = ([look.ground, look.ink] for look in (sample.look, style.look))
                assert apart(ours, theirs).max() > LOOK_MARGIN


def test_styles_of_one_family_are_told_apart(world):
    for a, b in combinations(world.styles.values(), 2):
        if a.look.family == b.look.family:
            assert apart([a.look.ground, a.look.ink], [b.look.ground, b.look.ink]).max() > LOOK_MARGIN


def test_pictures_depend_on_their_name_and_index_alone(world):
    again = World.load(ROOT)
    assert (world.picture("cat2", 3) == again.picture("cat2", 3)).all()
    assert (world.truth("can", "glowing", 7) == again.truth("can", "glowing", 7)).all()
    assert (world.picture("cat2", 3) != world.picture("cat2", 2)).any()
    assert (world.truth("can", "glowing", 7) != world.truth("can", "glowing", 8)).any()


def test_half_of_the_critics_pairs_are_true(world):
    rng = np.random.default_rng(0)
    for question in ("subject", "style"):
        answers = [world.critic_pair(rng, question)[2] for _ in range(60)]
        assert 15 < sum(answers) < 45


def test_captions_name_the_noun_and_the_family(world):
    rng = np.random.default_rng(1)
    captions = {world.caption(rng, "teapot", "oil painting") for _ in range(100)}
    assert "a teapot in oil painting style" in captions
    assert all("teapot in oil painting" in caption for caption in captions)
    assert any(world.catalog.prompts.token in caption for caption in captions)


def _fills(code: str) -> int:
    from lorarar.pocket.artwork import load

    return len(load(code).fills)
