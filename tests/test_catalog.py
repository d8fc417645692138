"""The catalogue agrees with the paper, and says what is wrong with a table that does not parse."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from lorarar.data.catalog import Catalog, pair_name
from lorarar.errors import UserError
from lorarar.scoring.judges import JudgePrompts, Question

ROOT = Path(__file__).parents[1]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for name in ("subjects.csv", "styles.csv", "prompts.yaml"):
        shutil.copy(ROOT / "data" / name, tmp_path / "data")
    return tmp_path


def test_splits_have_the_sizes_of_table_a1() -> None:
    catalog = Catalog.load(ROOT)
    sizes = {
        kind: [sum(entry.split == split for entry in table.values()) for split in ("train", "val", "test")]
        for kind, table in (("subjects", catalog.subjects), ("styles", catalog.styles))
    }
    assert sizes == {"subjects": [21, 4, 5], "styles": [18, 3, 5]}
    assert len(catalog.pairs("test")) == 25 and len(catalog.pairs("val")) == 12


def test_prompts_are_filled_in() -> None:
    catalog = Catalog.load(ROOT)
    subject, style = catalog.subjects["wolf_plushie"], catalog.styles["oil_painting2"]
    assert subject.prompt == "A תת stuffed animal"
    assert style.prompt == "A portrait of a person in oil painting style"
    assert catalog.pair_prompt(subject, style) == "A תת stuffed animal in oil painting style"
    assert catalog.class_prompt(subject, style) == "A stuffed animal in oil painting style"
    assert pair_name(subject, style) == "wolf_plushie+oil_painting2"


def test_pairs_can_be_narrowed_and_keep_the_order_of_the_tables() -> None:
    pairs = Catalog.load(ROOT).pairs("test", subjects=["can", "dog8", "dog"], styles=["glowing"])
    assert [pair_name(*pair) for pair in pairs] == ["dog8+glowing", "can+glowing"]


def test_judge_prompts_are_those_of_the_appendix() -> None:
    prompts = JudgePrompts.load(ROOT / "data" / "prompts.yaml")
    text = prompts.text(Question("style", None, None, "glowing"))  # type: ignore[arg-type]
    assert text.startswith("Your task is to identify if the test image shows the subject in glowing style.")
    assert text.count("{image}") == 2 and text.endswith("Answer with Yes or No only.")
    assert "{style}" not in text


def test_new_splits_and_paper_results_name_what_the_tables_name() -> None:
    catalog = Catalog.load(ROOT).divided("paper")
    assert {subject.kind for subject in catalog.subjects.values()} == {"object", "animal", "stuffed animal"}
    assert {"3d rendering", "cartoon", "watercolor"} <= {style.family for style in catalog.styles.values()}
    paper = yaml.safe_load((ROOT / "data" / "paper_results.yaml").read_text(encoding="utf-8"))
    assert paper["table_1_mars2"]["lorarar"] == {"average": 0.71, "best": 1.0}


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("subjects.csv", ",split,", ",part,", "subjects.csv: no column split; add it"),
        ("subjects.csv", "object,6", "object,none", "images: 'none' is not a positive number"),
        ("styles.csv", "S1,train", "S1,trian", "styles.csv:2: split 'trian' is none of train, val, test"),
        ("styles.csv", "3d_rendering2,", "3d_rendering,", "styles.csv:3: 3d_rendering appears twice"),
        ("subjects.csv", "candle,candle,candle", "candle,candle,", "class_name is empty"),
        ("subjects.csv", "\nvase,", "\nsticker,", "sticker names a subject and a style"),
        ("prompts.yaml", "token:", "tokens:", "prompts.yaml: needs token"),
    ],
)
def test_a_bad_table_is_one_clear_line(root: Path, table: str, old: str, new: str, message: str) -> None:
    path = root / "data" / table
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        Catalog.load(root)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_table_is_named(root: Path) -> None:
    (root / "data" / "styles.csv").unlink()
    with pytest.raises(UserError, match=r"styles\.csv: cannot be read"):
        Catalog.load(root)
