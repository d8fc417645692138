"""Training sets of the judges: their content, and the round trip through a random VAE."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from tiny_critic import Softened

from lorarar.errors import UserError
from lorarar.pocket.train import judge_datasets
from lorarar.pocket.train.degradations import Redrawn, RoundTrip
from lorarar.pocket.train.judge_datasets import HEADS, OTHER, UNKNOWN, Workshop
from lorarar.pocket.world.world import KEEPS_COLOR, World

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world():
    return World.load(ROOT)


@pytest.fixture
def shop(world, tmp_path, monkeypatch):
    monkeypatch.setattr(judge_datasets, "SHARD", 20)
    return Workshop(world, ROOT / "data/prompts.yaml", Softened(), tmp_path, seed=3)


@pytest.mark.parametrize("kind", ["subject", "style"])
def test_pairs_come_from_world_and_bank(shop, kind):
    for pairs in (shop.pairs(kind, 20), shop.pairs(kind, 20, held_out=shop.degrade), shop.bank_pairs(kind, 20)):
        assert pairs["reference"].shape == pairs["test"].shape == (20, 64, 64, 3)
        assert pairs["reference"].dtype == pairs["test"].dtype == np.uint8
        assert 2 <= pairs["label"].sum() <= 18
    assert not np.array_equal(shop.pairs(kind, 20)["test"], shop.pairs(kind, 20, held_out=shop.degrade)["test"])


@pytest.mark.parametrize("kind", ["subject", "style"])
def test_wrong_pairs_of_one_class_or_family_or_in_other_colours_are_hard(shop, kind, world, monkeypatch):
    drawn = []
    for name in ("truth", "recoloured"):
        draw = getattr(World, name)
        monkeypatch.setattr(
            World, name, lambda self, *of, name=name, draw=draw: drawn.append((*of[:2], name)) or draw(self, *of)
        )
    asked = []
    shown = "picture" if kind == "subject" else "style_picture"
    reference = getattr(World, shown)
    monkeypatch.setattr(World, shown, lambda self, name, *rest: asked.append(name) or reference(self, name, *rest))
    pairs = shop.bank_pairs(kind, 60)
    ways = {"subject": {"", "same_class", "recoloured"}, "style": {"", "same_family"}}
    assert {*pairs["hard"]} == ways[kind]
    subjects, styles = world.catalog.subjects, world.styles
    for row, ((subject, style, how), name) in enumerate(zip(drawn, asked, strict=True)):
        if how == "recoloured":
            assert subject == name and styles[style].look.family in KEEPS_COLOR
            assert not pairs["label"][row] and pairs["hard"][row] == how
            continue
        other, group = (subject, {n: s.class_name for n, s in subjects.items()})
        if kind == "style":
            other, group = style, {n: s.look.family for n, s in styles.items()}
            assert pairs["words"][row] == world.catalog.styles[name].words
        assert pairs["label"][row] == (other == name)
        assert (pairs["hard"][row] != "") == (other != name and group[other] == group[name])


def test_labelled_pictures_name_what_they_show(shop, world):
    data = shop.labelled(60)
    assert data["image"].shape == (60, 64, 64, 3)
    assert set(data["subject"]) <= {*world.subjects, OTHER}
    assert set(data["style"]) <= {*world.styles, OTHER}
    assert set(data["noun"]) <= {*world.nouns, UNKNOWN}
    for row in range(60):
        style = data["style"][row]
        assert style == OTHER or world.styles[style].look.family == data["family"][row]
        # A noun is known exactly where the picture shows one of the base's own glyphs.
        assert data["noun"][row] == UNKNOWN or data["subject"][row] == OTHER
    assert (data["subject"] != OTHER).any() and (data["style"] != OTHER).any()
    assert set(HEADS) < set(data)


def test_a_set_is_the_same_when_made_again(shop, tmp_path):
    first = shop.samples(20)
    for path in tmp_path.rglob("*.npz"):
        path.unlink()
    again = shop.samples(20)
    assert all(np.array_equal(first[key], again[key]) for key in first)


@pytest.fixture(scope="module")
def random_vae_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("random_vae")
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    ).save_pretrained(folder)
    return folder


def test_round_trip_through_a_random_vae_is_repeatable_and_names_its_weights(random_vae_folder):
    trip = RoundTrip(random_vae_folder)
    images = np.random.default_rng(0).integers(0, 256, size=(3, 64, 64, 3), dtype=np.uint8)
    once, twice = (trip(images, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(once, twice)
    assert once.shape == images.shape and once.dtype == np.uint8
    without = RoundTrip(random_vae_folder, noise=0.0)(images, np.random.default_rng(1))
    assert not np.array_equal(once, without)
    assert len(trip.key) == 12


def test_a_missing_vae_is_named(tmp_path):
    with pytest.raises(UserError, match="no VAE there"):
        RoundTrip(tmp_path)


def test_the_base_redraws_a_picture_as_the_same_thing(world):
    rng = np.random.default_rng(0)
    images = np.stack([world.sample(rng).image for _ in range(4)])
    trip, redrawn = RoundTrip(ROOT / "data/pocket/base/vae", noise=0.0), Redrawn(ROOT / "data/pocket/base")
    assert len(redrawn.key) > len(trip.key)
    once, twice = (redrawn(images, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(once, twice)
    assert once.shape == images.shape and once.dtype == np.uint8

    def error(ours: np.ndarray) -> np.ndarray:
        return np.square(ours.astype(float)[:, None] - images.astype(float)[None]).mean((2, 3, 4))

    assert (error(once).argmin(1) == np.arange(4)).all()  # nearest to the picture it was made of
    assert (np.diag(error(once)) > np.diag(error(trip(images, rng)))).all()  # and further off than the VAE puts it
    redrawn.depth = redrawn.steps = 1
    assert np.abs(redrawn(images, rng).astype(float) - trip(images, rng)).mean() < 4  # no deeper than the VAE's own


def test_training_pictures_are_practised_on_and_measuring_ones_are_not(shop, world, tmp_path):
    class Black:
        key = "black"

        def __call__(self, images, rng):
            return np.zeros_like(images)

    taught = Workshop(world, shop.prompts, shop.degrade, tmp_path, seed=3, practice=Black())
    black = [not image.any() for image in taught.labelled(20)["image"]]
    assert 8 < sum(black) < 20  # most, not all
    for measured in (taught.labelled(20, held_out=shop.degrade)["image"], taught.bank_pairs("style", 20)["test"]):
        assert all(image.any() for image in measured)
