"""The miniature world draws everything in the catalogue, and its base never learns from the bank."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from skimage.color import deltaE_cie76, rgb2lab
from tokenizers import Tokenizer

from lorarar.data.catalog import Catalog
from lorarar.pocket.world.styles import FAMILIES, SIZE
from lorarar.pocket.world.world import LOOK_MARGIN, PALETTE_MARGIN, World

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


@pytest.fixture(scope="module")
def wider() -> World:
    """The world with the new concepts of section A2.5."""
    return World.load(ROOT, scheme="all")


def test_new_concepts_are_drawn_where_they_are_asked_for(world, wider):
    assert wider.subjects.keys() - world.subjects.keys() == {"toaster", "tv", "sofa"}
    assert wider.styles.keys() - world.styles.keys() == {"cyberpunk"}
    for name in ("toaster", "tv", "sofa"):
        assert wider.picture(name, 0).std() > 15
        truths = [wider.truth(name, style, 0).astype(float) for style in ("cyberpunk", "glowing")]
        assert np.abs(truths[0] - truths[1]).mean() > 15
    assert (wider.truth("can", "glowing", 7) == world.truth("can", "glowing", 7)).all()


def test_base_and_judges_never_learn_from_new_concepts(world, wider, samples):
    new = {name: wider.subjects[name] for name in ("toaster", "tv", "sofa")}
    known = {s.art.code for s in world.subjects.values()} | {c for codes in world.nouns.values() for c in codes}
    assert known.isdisjoint(subject.art.code for subject in new.values())
    assert {subject.art.code for subject in new.values()} & set(world.strangers) == {new["sofa"].art.code}
    assert "cyberpunk" not in {*FAMILIES, *world.vocabulary, *(sample.family for sample in samples)}
    for name, subject in new.items():
        others = [other.palette[:2] for other_name, other in wider.subjects.items() if other_name != name]
        assert all(apart(subject.palette[:2], palette).max() > PALETTE_MARGIN for palette in others)


def test_the_bases_text_encoders_spell_the_new_words_and_have_room_for_them(wider):
    catalog = Catalog.load(ROOT).divided("new_concepts", ROOT)
    tokenizer = Tokenizer.from_file(str(ROOT / "data/pocket/base/tokenizer/tokenizer.json"))
    prompts = {text for s, t in catalog.pairs("test") for text in (s.prompt, t.prompt, catalog.pair_prompt(s, t))}
    for prompt in prompts:
        tokens = tokenizer.encode(prompt).tokens
        assert len(tokens) <= 24 and tokens.count("<|endoftext|>") == 1, "which also stands for what cannot be spelled"


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
    from lorarar.pocket.world.artwork import load

    return len(load(code).fills)
