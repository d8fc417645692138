"""The wide world: drawn by its rule, unlike everything else, unseen by base and judges, invisible to other schemes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from skimage.color import rgb2lab
from typer.testing import CliRunner

from lorarar.cli import app
from lorarar.data.catalog import Catalog
from lorarar.pocket.world import wide
from lorarar.pocket.world.styles import FAMILIES
from lorarar.pocket.world.world import LOOK_MARGIN, PALETTE_MARGIN, World

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world() -> World:
    return World.load(ROOT, scheme="wide")


@pytest.fixture(scope="module")
def paper() -> World:
    return World.load(ROOT, scheme="all")


def test_each_part_has_its_size_and_every_noun_and_family(world, paper):
    nouns = {subject.class_name for subject in paper.catalog.subjects.values()} & set(paper.nouns)
    for split, (subjects, styles) in wide.PARTS.items():
        found = Counter(subject.class_name for subject in world.catalog.subjects.values() if subject.split == split)
        looks = Counter(world.styles[s.name].look.family for s in world.catalog.styles.values() if s.split == split)
        assert found.total() == subjects and set(found) == nouns
        assert looks.total() == styles and set(looks) == set(FAMILIES) - {"plain"}
        for numbers in (found, looks):
            assert max(numbers.values()) - min(numbers.values()) <= 1


def nearest(ours: list, others: list) -> float:
    """Least distance of two entries, each of two colours: the larger CIE76 distance of the first and of the second."""
    colours = rgb2lab(np.array([*ours, *others], np.float32))
    far = np.linalg.norm(colours[: len(ours), None] - colours[None], axis=-1).max(-1)
    far[np.arange(len(ours)), np.arange(len(ours))] = np.inf
    return float(far.min())


def unlike(one: World, *others: World) -> None:
    """Every entry of a world keeps its distance from the others of its own and from those of other worlds."""
    ours, theirs = ([s.palette[:2] for w in worlds for s in w.subjects.values()] for worlds in ([one], others))
    assert nearest(ours, theirs) >= PALETTE_MARGIN - 1  # colours are rounded to 8 bits
    for family in FAMILIES.keys() - {"plain"}:
        looks = [[s.look for w in worlds for s in w.styles.values()] for worlds in ([one], others)]
        ours, theirs = ([(look.ground, look.ink) for look in of if look.family == family] for of in looks)
        assert nearest(ours, theirs) >= LOOK_MARGIN - 1
    glyphs = [subject.art.code for subject in one.subjects.values()]
    taken = {s.art.code for o in others for s in o.subjects.values()}
    assert len(set(glyphs)) == len(glyphs) and not taken & set(glyphs)


def test_no_entry_is_near_another_or_one_of_the_papers(world, paper):
    unlike(world, paper)


def test_base_and_judges_have_seen_no_glyph_of_it(world, paper):
    glyphs = {subject.art.code for subject in world.subjects.values()}
    assert not glyphs & {code for codes in paper.nouns.values() for code in codes}
    assert not glyphs & set(World.load(ROOT).strangers)


def test_other_schemes_do_not_see_it(world):
    for scheme in ("paper", "new_concepts", "no_animals"):
        divided = Catalog.load(ROOT).divided(scheme, ROOT)
        assert not divided.subjects.keys() & world.subjects.keys() and not divided.styles.keys() & world.styles.keys()


def test_every_word_of_its_prompts_is_known_to_the_base(world):
    words = set(World.load(ROOT).vocabulary)
    catalog = world.catalog
    prompts = [entry.prompt for entry in (*catalog.subjects.values(), *catalog.styles.values())]
    prompts += [catalog.pair_prompt(*pair) for pair in catalog.pairs("val")]
    assert {word for prompt in prompts for word in prompt.lower().split()} <= words


def test_the_rule_draws_the_committed_tables(tmp_path, paper):
    wide.write(wide.draw([paper], wide.SEED, wide.PARTS, "w"), tmp_path, wide.HEADING)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ROOT / "data/schemes/wide" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("value", ["0" * 63 + "1", "f" * 64])
def test_a_sealed_part_is_drawn_from_a_value_that_nobody_chose(tmp_path, value, world, paper):
    for path in ("data/pocket/world.yaml", "data/subjects.csv", "data/styles.csv", "data/prompts.yaml", "data/schemes"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).symlink_to(ROOT / path) if path != "data/schemes" else (tmp_path / path).mkdir()
    (tmp_path / "data/schemes/wide").symlink_to(ROOT / "data/schemes/wide")
    result = CliRunner().invoke(app, ["unseal", value, "--root", str(tmp_path)])
    assert result.exit_code == 0, result.output
    sealed = World.load(tmp_path, scheme="sealed")
    assert {entry.split for entry in sealed.catalog.subjects.values()} == {"test"}
    assert (len(sealed.subjects), len(sealed.styles)) == wide.SEALED["test"]
    unlike(sealed, world, paper)
    again = CliRunner().invoke(app, ["unseal", value, "--root", str(tmp_path)])
    assert again.exit_code and "sealed: exists" in str(again.exception)


def test_a_value_that_is_no_beacons_is_refused():
    result = CliRunner().invoke(app, ["unseal", "hello"])
    assert result.exit_code and "hello: not 64 hexadecimal digits" in str(result.exception)
