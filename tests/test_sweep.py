"""`lorarar sweep`: every combination of settings becomes a file, a row and, if asked, a picture."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import lorarar
from lorarar.cli import main
from lorarar.cli.options import literal
from lorarar.files import sha256
from lorarar.lora.adapter import Adapter
from lorarar.sweep import Axis

ROOT = Path(__file__).parents[1]
EXAMPLES = [ROOT / "examples/pocket" / name for name in ("dog8.safetensors", "glowing.safetensors")]


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["lorarar", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Dog and glowing, with factors that a sweep must keep."""
    adapters = {"a": str(EXAMPLES[0]), "b": {"file": str(EXAMPLES[1]), "blocks": {"mid_block": 0.5}}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"method": "direct", "adapters": adapters}))
    return path


def test_every_combination_is_a_file_and_a_row(recipe, monkeypatch, capsys) -> None:
    out = recipe.with_name("sweep")
    words = ("sweep", recipe, "--over", "weights.b=0.4:0.8:0.2", "--over", "method=direct,tsv", "-o", out)
    assert run(monkeypatch, *words, "--dry-run") == 0
    names = capsys.readouterr().out.split()
    assert names == [f"weights.b={w}_method={m}.safetensors" for w in (0.4, 0.6, 0.8) for m in ("direct", "tsv")]
    assert not out.exists()
    assert run(monkeypatch, *words) == 0
    rows = list(csv.DictReader((out / "sweep.csv").open()))
    assert [row["file"] for row in rows] == names == sorted(path.name for path in out.glob("*.safetensors"))
    assert [(row["weights.b"], row["method"]) for row in rows][:3] == [
        ("0.4", "direct"),
        ("0.4", "tsv"),
        ("0.6", "direct"),
    ]
    assert all(row["sha256"] == sha256(out / row["file"]) for row in rows)
    halved = Adapter.load(EXAMPLES[1]).scaled(lambda name: 0.5 if name.startswith("unet.mid_block") else 1)
    expected = lorarar.merge(EXAMPLES[0], halved, method="direct", weights=(1, 0.6))
    merged = Adapter.load(out / "weights.b=0.6_method=direct.safetensors")
    for path, factors in merged.layers.items():
        torch.testing.assert_close(factors.delta, expected.layers[path].delta, rtol=1e-3, atol=1e-4)
    before = (out / names[0]).read_bytes()
    capsys.readouterr()
    assert run(monkeypatch, *words) == 2
    assert "exists" in capsys.readouterr().err and (out / names[0]).read_bytes() == before
    assert run(monkeypatch, *words, "--force") == 0 and (out / names[0]).read_bytes() == before


@pytest.mark.parametrize("text, values", [
    ("weights.b=0.4:1.2:0.2", (0.4, 0.6, 0.8, 1.0, 1.2)),
    ("weights.b=1:-1:-1", (1.0, 0.0, -1.0)),
    ("options.density=0.1:0.35:0.1", (0.1, 0.2, 0.3)),
    ("weights.b=0.1,2", (0.1, 2)),
    ("method=ties,dare", ("ties", "dare")),
    ("options.space=delta", ("delta",)),
])  # fmt: skip
def test_axes_are_lists_or_ranges_with_both_ends(text: str, values: tuple) -> None:
    axis = Axis.read(text, literal)
    assert axis.values == values and axis.setting == text.partition("=")[0]


@pytest.mark.parametrize("over, message", [
    (["weights.b"], "--over weights.b: write method=A,B"),
    (["format=kohya"], "--over format=kohya: write"),
    (["weights=1,2"], "--over weights=1,2: write"),
    (["weights.b=1:2:0"], "write a range as FIRST:LAST:STEP"),
    (["weights.b=1:2:-1"], "write a range"),
    (["weights.b=a:2:1"], "write a range"),
    (["weights.b=0:1:1e-9"], "take a larger step"),
    (["weights.b=1,1"], "comes twice"),
    (["weights.b=1,,2"], "is empty"),
    (["weights.b=1", "weights.b=2"], "a setting comes twice"),
    (["weights.c=1"], "has no adapter c; it has a, b"),
    (["weights.b=high"], "adapters.b.weight: give a number"),
    (["method=direct,magic"], "method magic: unknown"),
    (["options.density=0.2"], "method direct: has no option density"),
    (["method=ties,nplora", "weights.a=0,1"], "takes two adapters"),
    (["options.weights=1,2"], "give two numbers"),
])  # fmt: skip
def test_mistakes_are_one_line_and_write_nothing(recipe, monkeypatch, capsys, over: list[str], message: str) -> None:
    out = recipe.with_name("sweep")
    words = [word for text in over for word in ("--over", text)]
    status = run(monkeypatch, "sweep", recipe, *words, "-o", out)
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.count("\n") == 1, error
    assert not list(recipe.parent.glob("sweep/*.safetensors"))


def test_a_sweep_draws_one_sheet_with_its_settings_as_axes(recipe, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    out = recipe.with_name("sweep")
    words = ("sweep", recipe, "--over", "weights.b=0,1", "--over", "method=direct,average", "-o", out)
    assert run(monkeypatch, *words, "--pictures", "--steps", 1) == 0
    assert "sweep.webp: a picture of each" in capsys.readouterr().out
    wide = Image.open(out / "sweep.webp").size
    assert run(monkeypatch, *words[:4], "-o", recipe.with_name("one"), "--pictures", "--steps", 1) == 0
    row = Image.open(recipe.with_name("one") / "sweep.webp").size
    assert wide[0] == row[0] and wide[1] > row[1], "the second setting counts rows"


def test_pictures_need_words_before_anything_is_merged(recipe, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    content = yaml.safe_load(recipe.read_text())
    content["adapters"]["c"] = content["adapters"]["a"]
    recipe.write_text(yaml.safe_dump(content))
    out = recipe.with_name("sweep")
    assert run(monkeypatch, "sweep", recipe, "--over", "weights.b=1,2", "-o", out, "--pictures") == 2
    assert "give --prompt" in capsys.readouterr().err and not out.exists()
    assert run(monkeypatch, "sweep", recipe, "--over", "weights.b=1,2", "-o", out, "--prompt", "a dog") == 2
    assert "are for --pictures" in capsys.readouterr().err
