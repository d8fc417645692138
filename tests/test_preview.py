"""`lorarar generate`: two LoRAs in, pictures out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorarar import pictures, preview
from lorarar.cli import main
from lorarar.data.catalog import Catalog
from lorarar.diffusion.backbone import Backbone
from lorarar.diffusion.sampling import generate
from lorarar.merging import linear

ROOT = Path(__file__).parents[1]


@pytest.fixture
def files(tmp_path, adapters):
    for adapter, name in zip(adapters, ("cat", "oil"), strict=True):
        adapter.save(tmp_path / f"{name}.safetensors")
    return [str(tmp_path / f"{name}.safetensors") for name in ("cat", "oil")]


def run(monkeypatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["lorarar", "generate", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_pictures_are_those_of_the_merge_with_the_seeds_in_a_row(tiny_folder, files, adapters, tmp_path, monkeypatch):
    out, prompt = tmp_path / "out", "a sks dog in oil style"
    words = [*files, "-o", out, "-m", "direct", "-m", "average", "--base", tiny_folder, "--prompt", prompt]
    assert run(monkeypatch, *words, "-n", 5, "--seed", 3, "--steps", 2) == 0
    backbone, merged = Backbone.load(tiny_folder), linear.average(*adapters)
    expected = generate(backbone, merged, prompt, seeds=[3, 4, 5, 6], steps=2)
    expected += generate(backbone, merged, prompt, seeds=[7], steps=2)
    found = pictures.read_all(out / "average")
    assert len(found) == 5 and all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not np.array_equal(found[0], pictures.read(out / "direct" / "00.png"))
    assert Image.open(out / "overview.webp").size[0] > 5 * 128


def test_examples_are_the_test_entries_and_their_prompt_is_known(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = set(preview.examples())
    catalog = Catalog.load()
    entries = [*catalog.subjects.values(), *catalog.styles.values()]
    assert names == {entry.name for entry in entries if entry.split == "test"}
    assert preview.prompt_of("dog8", "glowing").endswith("dog in glowing style")


def test_examples_make_pictures_beside_the_truth(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert run(monkeypatch, "dog8", "glowing", "-o", tmp_path / "out", "-n", 1, "--steps", 2) == 0
    assert "LoRA.rar: merged in" in capsys.readouterr().out
    sheet = Image.open(tmp_path / "out" / "overview.webp")
    assert sheet.size[0] == 6 + 4 * 134, "subject, style, one picture, truth"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: "dog9"}, "dog9: no such file, nor one of the examples (3d_rendering4, can, cat2, dog8, "),
        ({1: "none.safetensors"}, "none.safetensors: no such file, nor one of the examples"),
        ({0: "dog8", 1: "can"}, "dog8 and can: give --prompt"),
        ({3: "lorarar"}, "needs a hypernetwork for this base; give --hypernet"),
        ({3: "ties2"}, "method ties2: unknown"),
        ({7: "nowhere"}, "nowhere/model_index.json: no such file"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    files, tiny_folder, tmp_path, monkeypatch, capsys, change, message
):
    monkeypatch.chdir(ROOT)
    words = [*files, "-m", "direct", "-o", tmp_path / "out", "--base", tiny_folder]
    if "give --prompt" not in message:
        words += ["--prompt", "a dog"]
    for index, word in change.items():
        words[index] = word
    assert run(monkeypatch, *words) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ") and message in error[-1]
    assert not (tmp_path / "out").exists()


def test_pictures_are_replaced_only_when_told_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (tmp_path / "out").mkdir()
    shutil.copy(ROOT / "README.md", tmp_path / "out")
    words = ["dog8", "glowing", "-n", 1, "--steps", 1, "-o"]
    assert run(monkeypatch, *words, tmp_path / "out") == 2
    assert "exists; give another folder, or --force" in capsys.readouterr().err
    assert run(monkeypatch, *words, tmp_path / "out", "--force") == 0
    assert run(monkeypatch, *words, tmp_path / "out" / "README.md", "--force") == 2
    assert "README.md: is a file; give a folder" in capsys.readouterr().err


def test_a_base_is_a_folder_or_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data/sdxl/base").mkdir(parents=True)
    assert preview.find_base("sdxl") == Path("data/sdxl/base")
    assert preview.find_base("./sdxl") == Path("sdxl")
    assert preview.find_base("models/xl") == Path("models/xl")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["dog8", "glowing"],
            "dog8: no such file, and the examples are not here: run this in a clone of the repository",
        ),
        (["cat.safetensors", "oil.safetensors"], "the miniature is not here: run this in a clone of the repository"),
    ],
)
def test_away_from_the_repository_one_line_says_what_to_do(files, words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *words, "-o", "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line and "install 'lorarar[pocket]'" in line and not Path("out").exists()
