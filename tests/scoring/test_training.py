"""Training of the judges in miniature: resuming, views that keep the answer, and a toy world that can be learned."""

import numpy as np
import pytest
import torch
from tiny_critic import Softened
from torch import nn

from lorarar.errors import UserError
from lorarar.pocket.recogniser import HEADS, Network, Recogniser
from lorarar.pocket.train.degradations import (
    as_images,
    blurred_and_noisy,
    mirrored,
    mostly,
    recoloured,
    warped,
)
from lorarar.pocket.train.judge_datasets import OTHER
from lorarar.pocket.train.judges import contrast, pair_views, train_verification
from lorarar.pocket.train.recogniser import accuracy
from lorarar.pocket.train.shards import shards
from lorarar.pocket.train.trainer import fit
from lorarar.pocket.world.vocabulary import word_tokenizer
from lorarar.scoring.judges.verification import as_tensor, load_verifier


def toy(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


def run(model, path, stop_at=None):
    def draw(step):
        if step == stop_at:
            raise KeyboardInterrupt
        return [torch.randn(16, 4, generator=torch.Generator().manual_seed(step))]

    fit(
        model,
        draw,
        lambda x: ((model(x) - x.sum(1, keepdim=True)) ** 2).mean(),
        name="toy",
        steps=40,
        learning_rate=0.05,
        checkpoint=path,
        warmup=5,
        bf16=False,
    )


def test_a_run_that_was_cut_off_ends_where_an_uninterrupted_one_does(tmp_path):
    whole, cut, resumed = toy(), toy(), toy(seed=1)
    run(whole, tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(cut, tmp_path / "cut.pt", stop_at=17)
    run(resumed, tmp_path / "cut.pt")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert not whole.training


def test_a_finished_run_is_not_repeated_and_a_foreign_checkpoint_is_named(tmp_path):
    model = toy()
    run(model, tmp_path / "a.pt")
    again = toy(seed=1)
    run(again, tmp_path / "a.pt", stop_at=0)
    assert torch.equal(again[0].weight, model[0].weight)
    with pytest.raises(UserError, match="does not belong"):
        run(nn.Linear(4, 1), tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(b"cut off")
    with pytest.raises(UserError, match="does not belong"):
        run(toy(), tmp_path / "a.pt")


def test_shards_are_made_once_each_from_its_own_seed(tmp_path):
    made = []

    def make(rng):
        made.append(1)
        return {"x": rng.integers(1000, size=3)}

    first = shards(tmp_path, make, name="toy", count=3, seed=7)
    (tmp_path / "7-001.npz").unlink()
    again = shards(tmp_path, make, name="toy", count=3, seed=7)
    assert len(made) == 4
    assert np.array_equal(first["x"], again["x"])
    assert len(set(first["x"].tolist())) > 3


@pytest.fixture
def pixels():
    return torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_recolouring_treats_both_pictures_of_a_pair_alike(pixels):
    a, b = recoloured([pixels, pixels.clone()], generator())
    assert torch.equal(a, b)
    assert torch.equal(a.sort(1).values, pixels.sort(1).values)
    assert not torch.equal(a, pixels)


def test_views_without_strength_leave_pictures_alone(pixels):
    assert torch.allclose(warped(pixels, generator(), shift=0, scale=0, wobble=0), pixels, atol=1e-4)
    assert torch.equal(blurred_and_noisy(pixels, generator(), blur=0, noise=0), pixels)
    flipped = mirrored(pixels, generator())
    for before, after in zip(pixels, flipped, strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(-1))


def test_blur_is_the_one_two_one_kernel():
    point = torch.zeros(1, 3, 8, 8)
    point[..., 4, 4] = 16
    draws = generator()
    share = torch.rand((1, 1, 1, 1), generator=generator()).item()
    soft = blurred_and_noisy(point, draws, blur=1.0, noise=0.0)[0, 0, 3:6, 3:6]
    expected = share * torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])
    expected[1, 1] += 16 * (1 - share)
    assert torch.allclose(soft, expected, atol=1e-4)


def test_the_pictures_of_a_style_pair_are_mirrored_only_together():
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (32, 64, 64, 3)).copy()
    data = {"reference": ramp, "test": ramp, "label": np.ones(32, bool)}

    def facing(kind):
        reference, test, _ = pair_views(data, np.arange(32), kind, generator())
        return [t[..., -20:].mean((1, 2, 3)) > t[..., :20].mean((1, 2, 3)) for t in (reference, test)]

    reference, test = facing("style")
    assert torch.equal(reference, test)
    assert reference.any() and not reference.all()
    reference, test = facing("subject")
    assert not torch.equal(reference, test)


def test_degrading_most_pictures_leaves_the_others_exact():
    images = np.random.default_rng(0).integers(0, 256, size=(40, 16, 16, 3), dtype=np.uint8)
    result = mostly(Softened(), images, np.random.default_rng(1), share=0.5)
    same = [np.array_equal(a, b) for a, b in zip(images, result, strict=True)]
    assert 8 < sum(same) < 32
    assert result.dtype == np.uint8


def test_pixels_round_trip(pixels):
    images = as_images(pixels)
    assert np.array_equal(as_images(as_tensor(images)), images)


def test_contrast_is_the_cross_entropy_written_out():
    torch.manual_seed(0)
    a, b = torch.randn(3, 5), torch.randn(3, 5)
    views = [v / v.norm() for v in (*a, *b)]
    losses = []
    for i in range(6):
        similar = [torch.exp(views[i] @ views[j] / 0.2) for j in range(6)]
        losses.append(-torch.log(similar[(i + 3) % 6] / (sum(similar) - similar[i])))
    assert contrast(a, b).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_tokenizers_know_their_words():
    tokenizer = word_tokenizer(["A dog, in oil", "a cat"])
    assert tokenizer("A CAT in snow")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.decode(tokenizer("A CAT in snow")["input_ids"]) == "<start> a cat in <unk> <end>"


class ToyShop:
    """Pairs that differ only in colour: enough to see that training trains, without the real world."""

    seed, degrade, practice = 0, "the VAE", None

    def __init__(self, work):
        self.work = work

    def pairs(self, kind, count, held_out=None):
        count = min(count, 128)
        rng = np.random.default_rng(int(bool(held_out)))
        colours = rng.integers(0, 2, size=(2, count, 3)) * 200 + 20
        label = rng.random(count) < 0.5
        colours[1, label] = colours[0, label]
        label = (colours[0] == colours[1]).all(1)
        reference, test = np.broadcast_to(colours[:, :, None, None], (2, count, 64, 64, 3)).astype(np.uint8)
        return {"reference": reference, "test": test, "label": label}

    def bank_pairs(self, kind, count):
        return self.pairs(kind, count, held_out=self.degrade)


def test_verification_learns_a_toy_world_and_its_weights_are_saved(tmp_path):
    figures = train_verification(ToyShop(tmp_path), "style", tmp_path / "out", steps=30, batch=16, count=128, rate=3e-3)
    assert figures["bank_balanced"] == figures["held_out_balanced"] > 0.6
    network = load_verifier(tmp_path / "out" / "style.safetensors")
    assert next(network.parameters()).dtype == torch.float32
    assert (tmp_path / "out" / "style.json").is_file()


def test_random_recogniser_saves_loads_and_names(tmp_path):
    torch.manual_seed(0)
    names = {head: [f"{head}{i}" for i in range(3)] for head in HEADS}
    recogniser = Recogniser(Network([3] * 4), names)
    images = np.random.default_rng(0).integers(0, 256, size=(5, 64, 64, 3), dtype=np.uint8)
    found = recogniser.recognise(images, batch_size=2)
    recogniser.save(tmp_path)
    assert Recogniser.load(tmp_path).recognise(images) == found
    columns = {head: np.array([getattr(r, head) for r in found]) for head in HEADS} | {"image": images}
    columns["noun"] = np.array([columns["noun"][0], "", "", "", "somethingelse"])
    columns["style"][:2] = OTHER
    columns["family"][0] = "plain"  # which is no look, and so counts only as a family
    shares = accuracy(recogniser, columns)
    assert shares == {"noun": 0.5, "family": 0.8, "subject": 1.0, "style": 0.6, "family_of_other_looks": 1.0}
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded as a recogniser"):
        Recogniser.load(tmp_path)
