"""`lorarar score`: one's own pictures, scored without the pipeline by random models, so figures mean nothing."""

import csv
import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image as PilImage
from safetensors.torch import save_file
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from lorarar.cli import main
from lorarar.files import write_json
from lorarar.pocket.train.judges import clip_config
from lorarar.pocket.world.vocabulary import word_tokenizer
from lorarar.scoring import folder as scoring_folder
from lorarar.scoring.clip import Clip, clip_i, clip_t
from lorarar.scoring.dino import Dino, dino
from lorarar.scoring.judges import JudgePrompts, load_judge
from lorarar.scoring.judges.verification import VerificationJudge, Verifier, save_verifier
from lorarar.scoring.mars2 import rate

PROMPT = "A dog in oil painting style"


@pytest.fixture(scope="module")
def random_models(tmp_path_factory):
    """Folders of a random CLIP, DINO and verification judge."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("random_models")
    tokenizer = word_tokenizer([PROMPT])
    config = clip_config(len(tokenizer))
    write_json(folder / "clip" / "open_clip_config.json", config)
    tokenizer.save_pretrained(folder / "clip")
    save_file(open_clip.CLIP(**config["model_cfg"]).state_dict(), folder / "clip" / "open_clip_model.safetensors")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**sizes, image_size=64, patch_size=16), add_pooling_layer=False).save_pretrained(folder / "dino")
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "dino")
    for kind in ("subject", "style"):
        save_verifier(Verifier(widths=(4, 8, 8), width=8), folder / "judge" / f"{kind}.safetensors")
    return folder


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Six pictures, three of the subject, one of the style; run from their folder, with a cache next to them."""
    random = np.random.default_rng(0)
    for name, number in (("out", 6), ("cat", 3), ("style", 1)):
        (tmp_path / name).mkdir()
        for index in range(number):
            picture = random.integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
            PilImage.fromarray(picture).save(tmp_path / name / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


GIVEN = ("out", "--subject-refs", "cat", "--style-refs", "style")


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["lorarar", "score", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_the_library_and_say_what_made_them(folders, random_models, monkeypatch, capsys):
    judge, clip, vit = (random_models / name for name in ("judge", "clip", "dino"))
    words = [*GIVEN, "--judge", judge, "--style-words", "oil painting", "--clip", clip, "--prompt", PROMPT]
    assert run(monkeypatch, *words, "--dino", vit) == 0
    printed = capsys.readouterr().out
    rows, figures = table("scores.csv"), json.loads((folders / "scores.json").read_text())

    given, of_subject, of_style = (
        list(scoring_folder.read_pictures(folders / name).values()) for name in ("out", "cat", "style")
    )
    prompts = JudgePrompts.load(scoring_folder.PROMPTS)
    ratings = rate(load_judge(judge, prompts), given, of_subject, of_style, "oil painting")
    expected = {
        "right": [rating.right for rating in ratings],
        "subject_yes": [rating.subject.yes for rating in ratings],
        "style_prob": [rating.style.probability for rating in ratings],
        "clip_i": clip_i(Clip.load(clip), given, of_style).tolist(),
        "clip_t": clip_t(Clip.load(clip), given, PROMPT).tolist(),
        "dino": dino(Dino.load(vit), given, of_subject).tolist(),
    }
    assert [row["image"] for row in rows] == [f"{index}.png" for index in range(6)]
    for name, values in expected.items():
        assert [float(row[name]) for row in rows] == pytest.approx([float(value) for value in values], abs=1e-5), name
    for name in ("right", "clip_i", "clip_t", "dino"):
        assert figures[name] == pytest.approx(np.mean(expected[name]), abs=1e-5)
        assert figures[f"{name}_ci_low"] <= figures[name] <= figures[f"{name}_ci_high"]
    assert figures["n_images"] == 6 and figures["unanswered"] == 0
    assert figures["prompt"] == PROMPT and figures["style_words"] == "oil painting"
    assert figures["models"]["judge"].startswith("verification sha256:")
    assert figures["models"]["clip"]["checkpoint"].startswith("sha256:")
    assert figures["models"]["dino"]["preprocessing"]["size"] == {"height": 64, "width": 64}
    assert "MARS²" in printed and "CLIP-T" in printed and "scores.csv: 6 pictures" in printed


def test_only_what_was_asked_for_is_scored(folders, random_models, monkeypatch, capsys):
    assert run(monkeypatch, *GIVEN, "--dino", random_models / "dino", "-o", "tables/mine.csv") == 0
    assert list(table("tables/mine.csv")[0]) == ["image", "dino"]
    assert "MARS²" not in capsys.readouterr().out
    assert (folders / "tables/mine.json").is_file() and not (folders / "cache").exists()


def test_what_was_judged_is_not_judged_again(folders, random_models, monkeypatch):
    asked = []
    answer = VerificationJudge.answer
    monkeypatch.setattr(VerificationJudge, "answer", lambda self, q, **k: asked.extend(q) or answer(self, q, **k))
    words = [*GIVEN, "--judge", random_models / "judge", "--style-words", "oil", "--force"]
    assert run(monkeypatch, *words) == 0
    first = (folders / "scores.csv").read_bytes()
    assert len(asked) == 6 * (3 + 1)
    (folders / "out" / "6.png").write_bytes((folders / "out" / "0.png").read_bytes())
    PilImage.new("RGB", (64, 64), "red").save(folders / "out" / "7.png")
    asked.clear()
    assert run(monkeypatch, *words) == 0
    assert len(asked) == 3 + 1
    assert (folders / "scores.csv").read_bytes().startswith(first)
    assert run(monkeypatch, *words, "--cache", "elsewhere") == 0
    assert len(asked) == (3 + 1) + 7 * (3 + 1)


def test_a_single_file_is_a_folder_of_one_and_photographs_stand_upright(folders):
    picture = PilImage.new("RGB", (4, 2), "red")
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    picture.save(folders / "photo.jpg", exif=exif)
    [(name, read)] = scoring_folder.read_pictures(folders / "photo.jpg").items()
    assert name == "photo.jpg" and read.shape == (4, 2, 3)


def test_captions_and_what_systems_leave_in_folders_are_passed_over(folders):
    for litter in ("0.txt", "0.caption", "Thumbs.db", "desktop.ini", "._0.png"):
        (folders / "cat" / litter).write_bytes(b"not a picture")
    assert all(name.endswith(".png") for name in scoring_folder.read_pictures(folders / "cat"))


def test_every_mistake_is_named_in_one_line_before_anything_is_scored(folders, random_models, monkeypatch, capsys):
    monkeypatch.setattr(scoring_folder, "rate", lambda *_: pytest.fail("scored"))
    monkeypatch.setattr(Clip, "images", lambda *_: pytest.fail("scored"))
    judge, clip = str(random_models / "judge"), ("--clip", str(random_models / "clip"))
    words = ("--style-words", "oil")

    def refused(*given, folders_given=GIVEN):
        assert run(monkeypatch, *folders_given, *given) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert not (folders / "scores.csv").exists()
        return error

    assert "nothing to score with" in refused()
    assert "give its words" in refused("--judge", judge)
    assert "give a CLIP model" in refused("--judge", judge, *words, "--prompt", "A dog")
    assert "give a judge too" in refused(*clip, "-s", "model=x")
    assert "NAME=VALUE" in refused("--judge", judge, *words, "-s", "model")
    assert "no option four_bit" in refused("--judge", judge, *words, "-s", "four_bit=True")
    assert "no such file or folder" in refused(*clip, folders_given=("nowhere", *GIVEN[1:]))
    assert "not a judge's configuration" in refused("--judge", str(folders / "out"), *words)
    assert "no-such/critic: transformers cannot load" in refused("--judge", "no-such/critic", *words)
    server = "http://127.0.0.1:9/v1"
    assert f"{server}: cannot be reached" in refused("--judge", server, *words, *clip)
    for option in ("concurrency=many", "concurrency=0", "timeout=-1", "model=7"):
        error = refused("--judge", server, *words, "-s", option)
        assert f"option {option.split('=')[0]}: Input should be" in error
    assert "no such CLIP folder" in refused("--clip", "nowhere")
    assert "cannot load this DINO" in refused(*clip, "--dino", str(folders / "out"))
    assert "cannot be read" in refused("--judge", judge, *words, "--prompts", "none.yaml")
    assert "figures go to a .json" in refused(*clip, "-o", "scores.json")
    (folders / "scores.json").write_text("mine")
    assert "scores.json: exists" in refused(*clip)
    (folders / "scores.json").unlink()

    (folders / "empty").mkdir()
    (folders / "empty" / ".DS_Store").write_bytes(b"")
    assert "empty: no pictures in it" in refused(*clip, folders_given=(*GIVEN[:-1], "empty"))
    (folders / "cat" / "notes.md").write_text("a good cat")
    assert "notes.md: not a picture" in refused(*clip)
    (folders / "cat" / "notes.md").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    assert "notes.md: HEIC, as iPhones take it, which cannot be read; save it as JPEG" in refused(*clip)
    (folders / "cat" / "notes.md").unlink()
    broken = folders / "cat" / "1.png"
    broken.write_bytes(broken.read_bytes()[:500])
    assert "1.png: not a picture" in refused(*clip)
    PilImage.new("RGB", (65, 64)).save(broken)
    assert "1.png: the verification judge knows" in refused("--judge", judge, *words)
    (folders / "scores.csv").write_text("precious")
    assert run(monkeypatch, *GIVEN, *clip) == 2
    assert "--force" in capsys.readouterr().err and (folders / "scores.csv").read_text() == "precious"


def test_help_has_examples(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    assert "ViT-B-32:openai" in capsys.readouterr().out
