"""The lighter base: cut out of pocket's UNet, distilled from it, and all else pocket's own files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from lorarar.diffusion.backbone import Backbone
from lorarar.diffusion.sampling import generate
from lorarar.errors import UserError
from lorarar.files import folder_sha256
from lorarar.pocket.train import distilled
from lorarar.training.dreambooth import PROJECTIONS
from stages import base
from stages.shared.context import Context
from stages.shared.integrity import verify_shipped

ROOT = Path(__file__).parents[2]
POCKET, LIGHT = ROOT / "data/pocket", ROOT / "data/pocket_light"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def teacher() -> Backbone:
    return Backbone.load(POCKET / "base", torch.float32)


def test_every_weight_that_is_left_is_the_teachers(teacher: Backbone) -> None:
    student, weights = distilled.cut(teacher.unet), teacher.unet.state_dict()
    kept = student.state_dict()
    assert kept.keys() < weights.keys() and all(torch.equal(kept[key], weights[key]) for key in kept)
    assert student.mid_block is None and not any(key.startswith("mid_block") for key in kept)
    assert student.num_parameters() / teacher.unet.num_parameters() == pytest.approx(0.675, abs=0.001)


def test_a_lora_finds_fewer_projections(teacher: Backbone) -> None:
    for unet, projections in ((teacher.unet, 56), (distilled.cut(teacher.unet), 32)):
        unet.add_adapter(LoraConfig(r=2, target_modules=list(PROJECTIONS)))
        assert sum(path.endswith("lora_A.default") for path, _ in unet.named_modules()) == projections


def test_self_attention_is_what_the_last_pass_put_out(teacher: Backbone) -> None:
    seen = distilled.self_attention(teacher.unet)
    told = teacher.encode_prompts(["a dog", "a cat"])
    with torch.no_grad():
        for pictures in (2, 1):
            teacher.predict(torch.zeros(pictures, *teacher.latent_shape), torch.tensor(500), told[:pictures])
            assert len(seen) == 7 and {len(output) for output in seen.values()} == {pictures}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a corpus of a few pictures of noise."""
    monkeypatch.setattr(distilled, "HELD", 4)
    (tmp_path / "corpus").mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    np.save(tmp_path / "corpus" / "0000.npy", pictures)
    rows = [(f"a {noun}", noun, "", "") for noun in ("dog", "cat", "vase") * 4]
    (tmp_path / "corpus" / "0000.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


def test_training_changes_the_student_alone_and_goes_on_where_it_was_cut_off(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distilled.train(work, POCKET / "base", steps=2, batch=4)
    whole = load_file(work / "base" / UNET)
    start = load_file(POCKET / "base" / UNET)
    assert all(not torch.equal(whole[key], start[key]) for key in whole if key.endswith("to_q.weight"))
    verify_shipped(POCKET)

    (work / "unet.pt").unlink()
    lesson, asked = distilled.lesson, []

    def cut_off(*arguments: object) -> object:
        asked.append(arguments)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return lesson(*arguments)

    monkeypatch.setattr(distilled, "lesson", cut_off)
    with pytest.raises(KeyboardInterrupt):
        distilled.train(work, POCKET / "base", steps=2, batch=4)
    distilled.train(work, POCKET / "base", steps=2, batch=4)
    assert len(asked) == 4, "the first step is not taken again; the last one asked for is the examination"
    again = load_file(work / "base" / UNET)
    assert all(torch.equal(again[key], whole[key]) for key in whole)


def test_all_else_is_pockets_own() -> None:
    files = {path.relative_to(LIGHT / "base") for path in (LIGHT / "base").rglob("*") if path.is_symlink()}
    theirs = {path.relative_to(POCKET / "base") for path in (POCKET / "base").rglob("*") if path.is_file()}
    assert files == {path for path in theirs if path.parts[0] != "unet"}
    assert all((LIGHT / "base" / path).samefile(POCKET / "base" / path) for path in files)
    # Hashes, on which tasks and checksums depend, follow the links.
    for part in ("base/vae", "base/tokenizer", "judges"):
        assert folder_sha256(LIGHT / part) == folder_sha256(POCKET / part)


def test_the_stage_adds_its_unet_to_what_is_shared(
    tmp_path: Path, teacher: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    for path in (ROOT / "data").iterdir():
        (tmp_path / "data" / path.name).symlink_to(path)
    (tmp_path / "data/pocket_light").unlink()
    (tmp_path / "data/pocket_light/base").mkdir(parents=True)
    for path in LIGHT.rglob("*"):
        if path.is_symlink():
            link = tmp_path / path.relative_to(ROOT)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path.readlink())
    params = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("base: pocket ", "base: pocket_light ", 1)
    (tmp_path / "params.yaml").write_text(params, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    context = Context.load()
    with pytest.raises(UserError, match=r"with `base: pocket_light` in params.yaml, `python -m stages.base` trains"):
        verify_shipped(context.data)

    def make(root: Path, teacher_folder: Path, work: Path, **_: object) -> Path:
        distilled.cut(teacher.unet).save_pretrained(work / "base/unet")
        return work / "base"

    monkeypatch.setattr(distilled, "make", make)
    base.main(context)
    verify_shipped(context.data)
    assert (context.data / "base/vae/config.json").is_symlink()
    (image,) = generate(Backbone.load(context.data / "base"), None, "a dog", seeds=[0], steps=1, guidance=1)
    assert image.shape == (64, 64, 3)
