"""`lorarar merge` of any number of files with weights, and recipes: what each of their keys does to the updates."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import lorarar
from lorarar.cli import main
from lorarar.files import sha256
from lorarar.lora.adapter import Adapter, Factors
from lorarar.recipe import in_block, load

ROOT = Path(__file__).parents[1]
PATHS = [
    f"{block}.attentions.{i}.transformer_blocks.0.{attention}.to_q"
    for block in ("down_blocks.1", "down_blocks.2", "up_blocks.0")
    for i in (0, 1)
    for attention in ("attn1", "attn2")
]
TEXT = "text_encoder.text_model.encoder.layers.3.self_attn.q_proj"
RANKS = {"cat": 3, "oil": 2, "hat": 1}


def adapter(seed: int, rank: int) -> Adapter:
    random = torch.Generator().manual_seed(seed)

    def factors(n: int) -> Factors:
        return Factors(torch.randn(rank, n, generator=random), torch.randn(n, rank, generator=random))

    layers = {path: factors(640 if path.startswith("down_blocks.1") else 1280) for path in PATHS}
    return Adapter(layers, others={TEXT: factors(768)})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, rank) in enumerate(RANKS.items()):
        adapter(seed, rank).save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three adapters, in which the test runs."""
    for path in made.iterdir():
        (tmp_path / path.name).hardlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["lorarar", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: object) -> str:
    """The one line a mistake ends with; nothing is written."""
    before = {path.name for path in Path().iterdir()}
    capsys.readouterr()
    assert run(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert {path.name for path in Path().iterdir()} == before
    return error


def updates(path: Path | str | Adapter) -> dict[str, torch.Tensor]:
    found = path if isinstance(path, Adapter) else Adapter.load(path)
    return {name: factors.delta for part in (found.layers, found.others) for name, factors in part.items()}


def assert_sum(merged: Path | str | Adapter, shares: dict[str, float], **special: dict[str, float]) -> None:
    """The merge is the sum of the adapters, each with a share; `special` has other shares of some layers."""
    parts, found = {name: updates(f"{name}.safetensors") for name in shares}, updates(merged)
    for path in [*PATHS, TEXT]:
        own = {name: special.get(name, {}).get(path, share) for name, share in shares.items()}
        expected = sum(share * parts[name][path] for name, share in own.items())
        torch.testing.assert_close(found[path], expected, rtol=1e-4, atol=1e-3)


def test_files_with_weights_are_summed_and_recorded(folder, monkeypatch, capsys) -> None:
    words = ("cat.safetensors:1.0", "oil.safetensors:0.8", "hat.safetensors:-0.3", "-o", "all.safetensors")
    assert run(monkeypatch, "merge", *words) == 0
    assert "method direct: Direct merge, the sum of 3 adapters" in capsys.readouterr().err
    assert_sum("all.safetensors", {"cat": 1.0, "oil": 0.8, "hat": -0.3})
    metadata = Adapter.load("all.safetensors").metadata
    assert json.loads(metadata["lorarar.sources"]) == [
        {"file": f"{name}.safetensors", "sha256": sha256(f"{name}.safetensors"), "weight": weight}
        for name, weight in {"cat": 1.0, "oil": 0.8, "hat": -0.3}.items()
    ]
    assert metadata["modelspec.merged_from"] == "cat.safetensors, oil.safetensors, hat.safetensors"


def test_weights_reach_every_method(folder, monkeypatch) -> None:
    files = ("cat.safetensors:1.0", "oil.safetensors:0.5", "hat.safetensors")
    three = [adapter(seed, rank) for seed, rank in enumerate(RANKS.values())]
    half = three[1].scaled(lambda name: 0.5)
    for method, expected in {
        "ties": lorarar.merge(*three, method="ties", weights=(1.0, 0.5, 1.0)),
        "average": lorarar.merge(*three, method="direct", weights=(1 / 3, 0.5 / 3, 1 / 3)),
        "tsv": lorarar.merge(three[0], half, three[2], method="tsv"),
        "balanced": lorarar.merge(*three, method="balanced", weights=(1.0, 0.5, 1.0)),
    }.items():
        assert run(monkeypatch, "merge", *files, "-o", "out.safetensors", "-m", method, "--force") == 0
        for path, update in updates("out.safetensors").items():
            torch.testing.assert_close(update, updates(expected)[path], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["direct", "ties", "dare", "tsv", "nplora"])
def test_a_weight_of_zero_removes_a_file_exactly(folder, monkeypatch, method) -> None:
    files = ("cat.safetensors:0.9", "hat.safetensors:0", "oil.safetensors:0.5")
    assert run(monkeypatch, "merge", *files, "-o", "with.safetensors", "-m", method) == 0
    assert run(monkeypatch, "merge", files[0], files[2], "-o", "without.safetensors", "-m", method) == 0
    one, other = Adapter.load("with.safetensors"), Adapter.load("without.safetensors")
    assert all(torch.equal(f.up, other.layers[p].up) and torch.equal(f.down, other.layers[p].down)
               for p, f in one.layers.items())  # fmt: skip
    assert [source["weight"] for source in json.loads(one.metadata["lorarar.sources"])] == [0.9, 0, 0.5]


def test_a_colon_may_be_part_of_a_name_and_one_file_may_have_a_weight(folder, monkeypatch) -> None:
    Path("cat.safetensors").rename("cat:2")
    assert run(monkeypatch, "merge", "cat:2", "oil.safetensors", "-o", "both.safetensors", "-m", "direct") == 0
    assert set(json.loads(Adapter.load("both.safetensors").metadata["lorarar.sources"])) == {"content", "style"}
    assert run(monkeypatch, "merge", "oil.safetensors:0.5", "-o", "half.safetensors") == 0
    assert_sum("half.safetensors", {"oil": 0.5})


def test_wrong_numbers_of_files_and_weights_are_one_line(folder, monkeypatch, capsys) -> None:
    two, out = ("cat.safetensors:1", "oil.safetensors:0.5"), ("-o", "out.safetensors")
    assert "takes two adapters" in fails(monkeypatch, capsys, "merge", *two, "hat.safetensors", *out, "-m", "nplora")
    assert "the only file" in fails(monkeypatch, capsys, "merge", "cat.safetensors", *out)
    assert "finite weight" in fails(monkeypatch, capsys, "merge", "cat.safetensors:nan", "oil.safetensors", *out)
    assert "weights already" in fails(monkeypatch, capsys, "merge", *two, *out, "-m", "ties", "-s", "weights=(1, 1)")
    error = fails(monkeypatch, capsys, "merge", "cat.safetensors:0", "oil.safetensors:0", *out)
    assert "no adapter is left" in error
    assert "none.safetensors" in fails(monkeypatch, capsys, "merge", *two, "none.safetensors:1", *out)


RECIPE = """
method: direct
format: kohya
dtype: fp16
adapters:
  cat: cat.safetensors
  oil:
    file: oil.safetensors
    weight: 0.8
    components: {text_encoder: 0}
    blocks: {down_blocks.1-2: 0.5, up_blocks.0.attentions.1: 0}
    layers: {"*.attn2.*": 2}
  more:
    weight: -0.5
    recipe:
      method: average
      adapters: {hat: hat.safetensors, again: {file: cat.safetensors, weight: 0.4}}
"""


def test_a_recipe_does_what_its_keys_say(folder, monkeypatch) -> None:
    Path("recipe.yaml").write_text(RECIPE)
    merged = lorarar.merge("recipe.yaml")
    special = {TEXT: 0.0}
    for path in PATHS:
        block = 0.0 if "up_blocks.0.attentions.1" in path else 0.5 if path.startswith("down") else 1.0
        special[path] = 0.8 * block * (2 if "attn2" in path else 1)
    shares = {"cat": 1.0 - 0.5 * 0.5 * 0.4, "oil": 0.8, "hat": -0.5 * 0.5}
    assert_sum(merged, shares, oil=special)
    assert run(monkeypatch, "merge", "recipe.yaml", "-o", "out.safetensors") == 0
    written = Adapter.load("out.safetensors")
    assert written.format.startswith("kohya") and written.layers[PATHS[0]].down.dtype == torch.float16
    assert run(monkeypatch, "merge", "recipe.yaml", "-o", "whole.safetensors", "-d", "fp32", "-f", "diffusers") == 0
    whole = Adapter.load("whole.safetensors")
    assert_sum(whole, shares, oil=special)
    assert whole.layers[PATHS[0]].rank == 3 + 2 + 1 + 3 and whole.others[TEXT].rank == 3 + 1 + 3, "0 leaves layers out"
    cat, oil, more = json.loads(whole.metadata["lorarar.sources"])
    assert cat == {"file": "cat.safetensors", "sha256": sha256("cat.safetensors"), "weight": 1.0}
    assert oil["blocks"] == {"down_blocks.1-2": 0.5, "up_blocks.0.attentions.1": 0} and oil["weight"] == 0.8
    assert (more["method"], more["options"]) == ("average", {})
    assert [s["file"] for s in more["sources"]] == [
        "hat.safetensors",
        "cat.safetensors",
    ]


def test_recipes_may_be_files_of_recipes_and_json(folder) -> None:
    Path("sub").mkdir()
    inner = {"method": "direct", "adapters": {"hat": {"file": "../hat.safetensors", "weight": 2}}}
    Path("sub/inner.json").write_text(json.dumps(inner))
    outer = {"adapters": {"cat": "cat.safetensors", "inner": {"recipe": "sub/inner.json", "weight": 0.25}}}
    Path("outer.json").write_text(json.dumps(outer))
    assert_sum(lorarar.merge("outer.json"), {"cat": 1.0, "hat": 0.5})


def test_weights_of_blocks_work_with_a_method_of_a_pair(folder) -> None:
    Path("r.yaml").write_text(
        "method: nplora\nadapters:\n  c: {file: cat.safetensors, weight: 0.5}\n"
        "  s: {file: oil.safetensors, blocks: {up_blocks: 0.25}}\n"
    )
    c, s = (adapter(seed, RANKS[name]) for seed, name in enumerate(("cat", "oil")))
    c, s = c.scaled(lambda name: 0.5), s.scaled(lambda name: 0.25 if name.startswith("unet.up_blocks") else 1)
    expected, merged = updates(lorarar.merge(c, s, method="nplora")), updates(lorarar.merge("r.yaml"))
    for path in PATHS:
        torch.testing.assert_close(merged[path], expected[path])


@pytest.mark.parametrize("name, block, inside", [
    ("unet.down_blocks.1.attentions.0.to_q", "down_blocks.0-1", True),
    ("unet.down_blocks.11.attentions.0.to_q", "down_blocks.1", False),
    ("unet.down_blocks.2.attentions.0.to_q", "down_blocks.0-1", False),
    ("unet.down_blocks.2.attentions.0.to_q", "unet.down_blocks", True),
    ("unet.mid_block.attentions.0.to_q", "mid_block", True),
    ("unet.mid_block.attentions.0.to_q", "attentions.0", False),
    ("text_encoder.text_model.encoder.layers.9.q", "text_model.encoder.layers.0-11", True),
    ("text_encoder_2.text_model.encoder.layers.9.q", "text_encoder.text_model", False),
])  # fmt: skip
def test_blocks_are_beginnings_of_paths_with_ranges(name: str, block: str, inside: bool) -> None:
    assert in_block(name, block) is inside


@pytest.mark.parametrize("change, message", [
    ("wieght: 1", r"adapters\.oil: no key is called wieght; choose one of file"),
    ("weight: high", r"adapters\.oil\.weight: give a number, such as 0\.8, not 'high'"),
    ("weight: true", r"adapters\.oil\.weight: give a number"),
    ("weight: .inf", r"adapters\.oil\.weight: give a number"),
    ("weight: [1, 2]", r"adapters\.oil\.weight: give a number"),
    ("blocks: 0.5", r"adapters\.oil\.blocks: give a table"),
    ("blocks: {down_blocks.7: 1}", r"adapters\.oil\.blocks\.down_blocks\.7: fits no layer"),
    ("blocks: {down_blocks.2-1: 1}", r"adapters\.oil\.blocks\.down_blocks\.2-1: fits no layer"),
    ("components: {transformer: 1}", r"adapters\.oil\.components\.transformer: fits no layer"),
    ("layers: {'*.attn9.*': 1}", r"adapters\.oil\.layers\.\*\.attn9\.\*: fits no layer"),
    ("layers: {'*.attn1.*': x}", r"adapters\.oil\.layers\.\*\.attn1\.\*: give a number"),
    ("recipe: {adapters: {a: cat.safetensors}}", r"adapters\.oil: give either file"),
    ("weight: 1, weight: 2", "the key weight comes twice"),
])  # fmt: skip
def test_mistakes_in_an_adapter_name_recipe_and_key(folder, monkeypatch, capsys, change: str, message: str) -> None:
    Path("r.yaml").write_text(f"adapters:\n  cat: cat.safetensors\n  oil: {{file: oil.safetensors, {change}}}\n")
    error = fails(monkeypatch, capsys, "merge", "r.yaml", "-o", "out.safetensors")
    assert re.match(rf"error: r\.yaml: {message}", error), error


TWO = "adapters: {cat: cat.safetensors, oil: oil.safetensors}"


@pytest.mark.parametrize("text, message", [
    ("", "give a table of keys and values, not nothing"),
    ("- a\n- b", "give a table"),
    ("method: direct", "adapters: give a table"),
    ("adapters: {}", "adapters: name at least one"),
    ("adapters: [cat.safetensors]", "adapters: give a table"),
    (f"{TWO}\nmetod: direct", "no key is called metod; choose one of method"),
    (f"{TWO}\nmethod: [direct]", "method: give a text"),
    (f"{TWO}\nmethod: magic", "method magic: unknown"),
    (f"{TWO}\nmethod: ties\noptions: {{densty: 1}}", "method ties: has no option densty"),
    (f"{TWO}\nmethod: ties\noptions: {{density: 7}}", "density 7: give a share"),
    (f"{TWO}\nmethod: ties\noptions: 7", "options: give a table"),
    (f"{TWO}\ndtype: fp12", "dtype fp12: unknown"),
    (f"{TWO}\nformat: kohia", "format kohia"),
    ("adapters: {c: {file: cat.safetensors, weight: 1}, s: oil.safetensors}\noptions: {weights: [1, 1]}",
     "options.weights: adapters have weights already"),
    ("adapters: {cat: none.safetensors}", "none.safetensors: no such file"),
    ("adapters: {c: {recipe: r.yaml}}", "adapters.c.recipe: r.yaml is part of itself"),
    ("adapters: {c: {recipe: {method: klora, adapters: {c: cat.safetensors, s: oil.safetensors}}}, d: oil.safetensors}",
     "adapters.c: its method makes a schedule"),
    ("adapters: {c: {recipe: {adapters: {x: {file: cat.safetensors, weigth: 1}}}}}",
     "adapters.c.recipe.adapters.x: no key is called weigth"),
    ("adapters: {1: cat.safetensors}", "adapters: the key 1 is no text"),
    ("adapters: {c: cat.safetensors", "line 1: is no YAML"),
])  # fmt: skip
def test_mistakes_in_a_recipe_name_it_in_one_line(folder, monkeypatch, capsys, text: str, message: str) -> None:
    Path("r.yaml").write_text(text)
    error = fails(monkeypatch, capsys, "merge", "r.yaml", "-o", "out.safetensors")
    assert error.startswith("error: r.yaml: ") and message in error, error


def test_a_recipe_stands_alone_and_needs_its_reader(folder, monkeypatch, capsys) -> None:
    Path("r.yaml").write_text(TWO)
    assert "stands alone" in fails(monkeypatch, capsys, "merge", "r.yaml", "cat.safetensors", "-o", "o.safetensors")
    assert "stands alone" in fails(monkeypatch, capsys, "merge", "r.yaml", "-o", "o.safetensors", "-m", "ties")
    assert "cannot be read" in fails(monkeypatch, capsys, "merge", "none.yaml", "-o", "o.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    assert "yaml is not installed: pip install" in fails(monkeypatch, capsys, "merge", "r.yaml", "-o", "o.safetensors")


def test_the_page_of_recipes_shows_one_that_works(folder, monkeypatch) -> None:
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    examples = re.findall(r"```yaml title=\"(\S+)\"\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in examples] == ["inner.yaml", "recipe.yaml"]
    for name, text in examples:
        Path(name).write_text(text, encoding="utf-8")
    assert load("recipe.yaml").method == "ties"
    assert run(monkeypatch, "merge", "recipe.yaml", "-o", "out.safetensors") == 0
    assert Adapter.load("out.safetensors").layers.keys() == set(PATHS)
