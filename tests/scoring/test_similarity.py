"""CLIP and DINO features equal those of open_clip's and transformers' own pipelines; random models, so no
skill.
"""

import json
import socket

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image as PilImage
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from lorarar.errors import UserError
from lorarar.files import folder_sha256, sha256, write_json
from lorarar.pocket.train.judges import clip_config
from lorarar.pocket.world.vocabulary import word_tokenizer
from lorarar.scoring.clip import Clip, clip_i, clip_t
from lorarar.scoring.dino import Dino, dino
from lorarar.scoring.images import mean_cosine

PROMPTS = ["A dog in oil painting style", "A cat in glowing style"]


@pytest.fixture(scope="module")
def pictures():
    return list(np.random.default_rng(0).integers(0, 256, size=(5, 64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def random_clip_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("random_clip")
    tokenizer = word_tokenizer(PROMPTS)
    config = clip_config(len(tokenizer))
    write_json(folder / "open_clip_config.json", config)
    tokenizer.save_pretrained(folder)
    model = open_clip.CLIP(**config["model_cfg"])
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def random_dino_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("random_dino")
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def test_mean_cosine_is_the_double_loop():
    torch.manual_seed(0)
    a, b = torch.randn(4, 8), torch.randn(3, 8)
    expected = [np.mean([torch.cosine_similarity(x, y, dim=0).item() for y in b]) for x in a]
    unit = torch.nn.functional.normalize
    assert mean_cosine(unit(a), unit(b)).tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="reference"):
        mean_cosine(unit(a), unit(b)[:0])


def test_clip_features_are_open_clips_own(random_clip_folder, pictures):
    clip = Clip.load(random_clip_folder)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{random_clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{random_clip_folder}")
    model.eval()
    with torch.no_grad():
        images = model.encode_image(torch.stack([preprocess(PilImage.fromarray(p)) for p in pictures]))
        texts = model.encode_text(tokenizer(PROMPTS))
    images = images / images.norm(dim=-1, keepdim=True)
    texts = texts / texts.norm(dim=-1, keepdim=True)
    assert torch.allclose(clip.images(pictures, batch_size=2), images, atol=1e-5)
    assert torch.allclose(clip.texts(PROMPTS), texts, atol=1e-5)
    assert torch.allclose(clip_i(clip, pictures[:2], pictures[2:]), (images[:2] @ images[2:].T).mean(1), atol=1e-5)
    assert torch.allclose(clip_t(clip, pictures, PROMPTS[0]), images @ texts[0], atol=1e-5)


def test_clip_text_feature_is_taken_at_the_end_of_the_prompt(random_clip_folder):
    tokens = Clip.load(random_clip_folder).tokenizer(["A cat", "A dog in oil painting style"])
    assert tokens.argmax(dim=1).tolist() == [3, 7]


def test_dino_features_are_transformers_own(random_dino_folder, pictures):
    got = Dino.load(random_dino_folder).images(pictures, batch_size=2)
    processor = AutoImageProcessor.from_pretrained(random_dino_folder)
    model = ViTModel.from_pretrained(random_dino_folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        inputs = processor([PilImage.fromarray(picture) for picture in pictures], return_tensors="pt")
        expected = model(**inputs).last_hidden_state[:, 0]
    expected = expected / expected.norm(dim=-1, keepdim=True)
    assert torch.allclose(got, expected, atol=1e-5)
    similarity = dino(Dino.load(random_dino_folder), pictures[:1], pictures[:1])
    assert similarity.item() == pytest.approx(1.0, abs=1e-5)


def test_missing_and_broken_models_are_named(tmp_path, random_clip_folder):
    with pytest.raises(UserError, match="no such CLIP folder"):
        Clip.load(tmp_path / "none")
    with pytest.raises(UserError, match=r"no open_clip_model\.safetensors"):
        Clip.load(tmp_path)
    for path in random_clip_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="open_clip cannot load it"):
        Clip.load(tmp_path)
    (tmp_path / "dino").mkdir()
    with pytest.raises(UserError, match="cannot load this DINO model"):
        Dino.load(tmp_path / "dino")


@pytest.fixture(scope="module")
def photographs():
    """Pictures of other sizes and shapes than any model's."""
    random = np.random.default_rng(1)
    return [random.integers(0, 256, size=(h, w, 3), dtype=np.uint8) for h, w in ((90, 150), (100, 60), (224, 224))]


TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture
def random_named_clip(tmp_path, monkeypatch):
    """open_clip's tables with a tiny random model of its own architecture in them, and a tag for its weights."""
    (tmp_path / "ViT-tiny-random.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "ViT-tiny-random.json")
    torch.manual_seed(0)
    weights = tmp_path / "tiny.safetensors"
    save_file(open_clip.CLIP(**TINY).state_dict(), weights)
    tag = {"file": str(weights), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bilinear"}
    from open_clip import pretrained

    monkeypatch.setitem(pretrained._PRETRAINED, "ViT-tiny-random", {"mine": tag, "gelu": {**tag, "quick_gelu": True}})
    yield weights
    (tmp_path / "ViT-tiny-random.json").unlink()
    open_clip.factory._MODEL_CONFIGS.pop("ViT-tiny-random")


@pytest.mark.parametrize(("tag", "quick"), [("mine", False), ("gelu", True)])
def test_a_named_random_clip_is_open_clips_own_with_its_tag_s_preprocessing(random_named_clip, photographs, tag, quick):
    clip = Clip.load("ViT-tiny-random", tag)
    model, _, preprocess = open_clip.create_model_and_transforms(
        "ViT-tiny-random", pretrained=tag, force_quick_gelu=quick
    )
    model.eval()
    with torch.no_grad():
        expected = model.encode_image(torch.stack([preprocess(PilImage.fromarray(p)) for p in photographs]))
        texts = model.encode_text(open_clip.get_tokenizer("ViT-tiny-random")(PROMPTS))
    unit = torch.nn.functional.normalize
    assert torch.allclose(clip.images(photographs), unit(expected), atol=1e-5)
    assert torch.allclose(clip.texts(PROMPTS), unit(texts), atol=1e-5)
    described = clip.describe()
    assert described["model"] == "ViT-tiny-random" and described["checkpoint"] == tag
    assert described["preprocessing"]["mean"] == (0.1, 0.2, 0.3)
    assert described["preprocessing"]["interpolation"] == "bilinear"
    assert json.loads(json.dumps(described))["preprocessing"]["std"] == [0.5, 0.6, 0.7]


def test_weights_trained_with_another_activation_get_it(random_named_clip, photographs):
    """As "ViT-B-32" with "openai" needs, of which open_clip itself only warns."""
    plain, quick = (Clip.load("ViT-tiny-random", tag).images(photographs) for tag in ("mine", "gelu"))
    assert not torch.allclose(plain, quick, atol=1e-4)
    assert open_clip.get_pretrained_cfg("ViT-B-32", "openai")["quick_gelu"]


def test_a_named_clip_takes_a_file_of_weights_too(random_named_clip, photographs):
    clip = Clip.load("ViT-tiny-random", str(random_named_clip))
    assert clip.describe()["checkpoint"] == f"sha256:{sha256(random_named_clip)}"
    assert clip.images(photographs).shape == (3, 16)


def test_a_folder_is_described_by_its_files(random_clip_folder, random_dino_folder, tmp_path):
    clip, dino = Clip.load(random_clip_folder).describe(), Dino.load(random_dino_folder).describe()
    assert clip["checkpoint"] == f"sha256:{folder_sha256(random_clip_folder)}"
    assert clip["preprocessing"]["size"] == (64, 64) or clip["preprocessing"]["size"] == 64
    assert dino["checkpoint"] == f"sha256:{folder_sha256(random_dino_folder)}"
    assert dino["preprocessing"]["size"] == {"height": 64, "width": 64}
    write_json(tmp_path / "described.json", {"clip": clip, "dino": dino})
    for file in random_dino_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "described.json").unlink()
    assert folder_sha256(tmp_path) == folder_sha256(random_dino_folder)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "of_a_download").write_text("")
    assert folder_sha256(tmp_path) == folder_sha256(random_dino_folder)
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    assert folder_sha256(tmp_path) != folder_sha256(random_dino_folder)


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
DINO = ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.485, 0.456, 0.406], image_std=[0.2] * 3)
DINOV2 = BitImageProcessor(size={"shortest_edge": 80}, crop_size={"height": 56, "width": 56})


@pytest.mark.parametrize(
    ("model", "processor"),
    [
        (ViTModel(ViTConfig(**SIZES, intermediate_size=64, image_size=64, patch_size=16)), DINO),
        (ViTModel(ViTConfig(**SIZES, intermediate_size=64, image_size=64, patch_size=8)), DINO),
        (Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2, image_size=56, patch_size=14)), DINOV2),
    ],
    ids=["like dino-vits16", "like dino-vits8", "like dinov2-small"],
)
def test_random_dinos_of_each_kind_are_transformers_own(model, processor, photographs, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        inputs = theirs([PilImage.fromarray(picture) for picture in photographs], return_tensors="pt")
        expected = model.eval()(**inputs).last_hidden_state[:, 0]
    got = Dino.load(tmp_path)
    assert torch.allclose(got.images(photographs), torch.nn.functional.normalize(expected), atol=1e-5)
    assert json.loads(json.dumps(got.describe()))["preprocessing"]["size"] == dict(theirs.size)


def test_nothing_is_downloaded_unless_allowed(tmp_path, monkeypatch):
    from huggingface_hub import constants

    called = []
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", lambda *address: called.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address: called.append(address))
    before = bool(constants.HF_HUB_OFFLINE)
    with pytest.raises(UserError, match=r"ViT-B-32: open_clip cannot load it .*allow the download"):
        Clip.load("ViT-B-32", "openai")
    assert bool(constants.HF_HUB_OFFLINE) is before
    with pytest.raises(UserError, match=r"no-such/dino-model: transformers cannot load .*allow the download"):
        Dino.load("no-such/dino-model")
    with pytest.raises(UserError, match="open_clip cannot load it"):
        Clip.load("ViT-B-32", "no-such-tag")
    assert not called
