"""CLIP and DINO features equal those of open_clip's and transformers' own pipelines; random models, so no
skill.
"""

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image as PilImage
from safetensors.torch import save_file
from transformers import AutoImageProcessor, ViTConfig, ViTImageProcessor, ViTModel

from lorarar.errors import UserError
from lorarar.files import write_json
from lorarar.pocket.judges import clip_config
from lorarar.pocket.vocabulary import word_tokenizer
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
