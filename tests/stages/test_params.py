"""params.yaml is checked as a whole, and dvc.yaml agrees with the stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lorarar.data.catalog import Catalog
from lorarar.errors import UserError
from stages.shared.context import Context
from stages.shared.params import FANNING_OUT, load
from stages.shared.trained import TRAINED

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("splits: [test]", "splits: [val, test]")
CATALOG = Catalog.load(ROOT)
# Values that tuning changes, as the file has them.
POCKET = yaml.safe_load(TEXT)["recipes"]["pocket"]
STEPS = f"steps: {POCKET['hypernet']['steps']} "
RANK = f"rank: {POCKET['bank']['rank']} "
SAMPLE = ("sample: null", "sample: {pairs: 5, seed: 0}")
GUIDANCE = f"guidance: {POCKET['generate']['guidance']} "


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run in the root, where the shipped models are."""
    monkeypatch.chdir(ROOT)


def problems(path: Path, *replacements: tuple[str, str]) -> list[str]:
    text = TEXT
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(path, CATALOG)
    return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]


def test_the_shipped_file_is_valid() -> None:
    params = load(ROOT / "params.yaml", CATALOG)
    assert params.workers is None and params.evaluate.pairs is None and params.chosen.bank.subjects is None
    assert params.chosen.generate.images_per_pair == 10


def test_a_base_needs_no_code_and_a_switch_of_base_and_recipe_is_enough(tmp_path: Path) -> None:
    text = TEXT.replace("base: pocket ", "base: koala ", 1).replace("recipe: pocket ", "recipe: sdxl ", 1)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    params = load(tmp_path / "params.yaml", CATALOG)
    assert params.chosen.bank.rank == 64 and params.jobs["bank"].memory_gb == 16
    assert params.jobs["hypernet"].minutes == 360 and params.jobs["joint"] == params.jobs["all"]
    text = TEXT.replace("base: pocket ", "base: pocket_light ", 1)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    light = load(tmp_path / "params.yaml", CATALOG)
    assert light.chosen.bank.rank == 16 and light.jobs["bank"].tasks_per_job == 4


def test_names_can_be_listed(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = TEXT.replace("subjects: all", "subjects: [dog, dog2, dog8]").replace("workers: auto", "workers: 3")
    path.write_text(text, encoding="utf-8")
    params = load(path, CATALOG)
    assert params.chosen.bank.subjects == ["dog", "dog2", "dog8"] and params.workers == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("judge: verification", "judge: http://localhost:8000/v1"),
        ("judge: verification", "judge: FuryMartin/llava-critic-7b-hf"),
        ("clip: clip", "clip: ViT-B-32:openai"),
        ("dino: dino", "dino: facebook/dino-vits16"),
    ],
)
def test_models_that_score_may_come_from_elsewhere(tmp_path: Path, old: str, new: str) -> None:
    assert old in TEXT
    (tmp_path / "params.yaml").write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    kind, _, name = new.partition(": ")
    assert getattr(load(tmp_path / "params.yaml", CATALOG).chosen.score, kind) == name


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("base: pocket", "base: pokcet", "base: no base is called 'pokcet'; did you mean pocket?"),
        ("- ziplora", "- ziplor", "evaluate.methods.8: no method is called 'ziplor'; did you mean ziplora?"),
        ("- average", "- direct", "evaluate.methods.1: direct appears twice; remove one"),
        ("[val, test]", "[val, val]", "evaluate.splits.1: val appears twice; remove one"),
        ("[val, test]", "[train]", "evaluate.splits.0: should be 'val' or 'test', not 'train'"),
        ("pairs: all", "pairs: [dog8+glow]", "did you mean dog8+glowing?"),
        ("pairs: all", "pairs: [dog8+glowing]", "evaluate.pairs: none of the split val"),
        ("sample: null", "sample: {pairs: 0, seed: 0}", "evaluate.sample.pairs: should be greater than 0, not 0"),
        ("sample: null", "sample: {pairs: 9}", "evaluate.sample.seed: is missing; add it"),
        ("sample: null", "sample: {pairs: 26, seed: 0}", "evaluate.sample.pairs: 26 is more than the 25 pairs of the"),
        ("pairs: all", "pairs: [dog8+glowing]\n  sample: {pairs: 2, seed: 0}", "evaluate.sample: appears twice"),
        ("subjects: all", "subjects: [dgo]", "recipes.pocket.bank.subjects.0: no subject is called 'dgo'"),
        ("subjects: all", "subjects: everything", "should be `all` or a list of names, not 'everything'"),
        ("subjects: all", "subjects: [dog8, dog2]", "recipes.pocket.bank: the hypernetwork needs at least one"),
        ("subjects: all", "subjects: [dog8, dog]", "evaluate.splits: the bank has no pair of the split val"),
        ("styles: all", "styles: [glowin]", "recipes.pocket.bank.styles.0: no style is called 'glowin'"),
        (STEPS, "steps: 0 ", "recipes.pocket.hypernet.steps: should be greater than 0, not 0"),
        (
            STEPS,
            "setps: 800 ",
            "recipes.pocket.hypernet.setps: no key here is called 'setps'; did you mean",
        ),
        (RANK, "rank: many ", "recipes.pocket.bank.rank: should be a valid integer"),
        ("guided: [to_q,", "guided: [to_p,", "recipes.pocket.hypernet.guided.0: should be 'to_q', 'to_k'"),
        (
            "judge: verification",
            "judge: verificaton",
            "recipes.pocket.score.judge: no judge is called 'verificaton'; did you mean verification?",
        ),
        ("clip: clip", "clip: ViT-B-32", "known: clip, dino, recogniser, verification, or give NAME:TAG of open_clip"),
        ("dino: dino", "dino: 16", "recipes.pocket.score.dino: should be a valid string, not 16"),
        (
            "judge_options: {}",
            "judge_options: none",
            "recipes.pocket.score.judge_options: should be a valid dictionary",
        ),
        ("workers: auto", "workers: -1", "workers: should be greater than 0, not -1"),
        ("seed: 0 ", "# ", "seed: is missing; add it"),
        ("seed: 0 ", "seed: 0\nseed: 1 ", "seed: appears twice; remove one"),
        ("executor: auto", "executor: slrum", "executor: should be 'auto', 'inline', 'local' or 'slurm', not 'slrum'"),
        (
            "    joint: {tasks",
            "    joitn: {tasks",
            "resources.pocket.joitn: no key here is called 'joitn'; did you mean",
        ),
        ("    all: {minutes", "    # {minutes", "resources: pocket needs `all`, which holds for every stage"),
        (
            "    all: {minutes: 30",
            "    all: {minutes: 0",
            "resources.pocket.all.minutes: should be greater than 0, not 0",
        ),
        (
            "base: pocket ",
            "base: koala ",
            "recipe: base koala goes with recipe sdxl, not 'pocket'; give `-S recipe=sdxl` too",
        ),
        ("recipe: pocket ", "recipe: sdxl ", "recipe: base pocket goes with recipe pocket, not 'sdxl'"),
        ("{recipe: sdxl}", "{recipe: sdlx}", "bases.sdxl.recipe: no recipe is called 'sdlx'; did you mean sdxl?"),
        ("      judge_questions: ", "      # ", "recipes.pocket.score.judge_questions: is missing; add it"),
        (
            "pictures: 60000",
            "picture: 60000",
            "bases.pocket.base.picture: no key here is called 'picture'; did you mean",
        ),
        (
            "training_dtype: float32",
            "training_dtype: float16",
            "should be 'auto', 'float32' or 'bfloat16', not 'float16'",
        ),
        ("{minutes: 60", "{minutes: 0", "resources.pocket.hypernet.minutes: should be greater than 0, not 0"),
        (
            "    hypernet: {minutes: 60",
            "    hypernet: {gpus: 3, minutes: 60",
            "hypernet.gpus: 3 GPUs cannot share recipes.poc",
        ),
        ("bases:", "bases: [", "not YAML"),
    ],
)
def test_a_mistake_is_told_with_key_and_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    lines = problems(tmp_path / "params.yaml", (old, new))
    (line,) = (line for line in lines if expected in line)
    number = int(line.partition(":")[0])
    key = expected.partition(":")[0].rpartition(".")[2] if not expected.startswith("not") else ""
    changed = TEXT.replace(old, new, 1).splitlines()
    if key in new and not key.isdigit():
        assert key in changed[number - 1], "the line number points at the key"


def test_a_sample_of_pairs_or_a_list_of_them(tmp_path: Path) -> None:
    lines = problems(tmp_path / "params.yaml", ("pairs: all", "pairs: [dog8+glowing]"), SAMPLE)
    assert any("evaluate.sample: draws from all pairs, but evaluate.pairs lists some" in line for line in lines)


def test_a_sample_is_balanced_and_of_each_split(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(TEXT.replace(*SAMPLE), encoding="utf-8")
    whole = Context.load()
    sampled = replace(whole, params=load(tmp_path / "params.yaml", CATALOG))
    for split in ("val", "test"):
        pairs = sampled.pairs(split)
        assert len(pairs) == 5 and set(pairs) < set(whole.pairs(split))
        assert pairs == [pair for pair in whole.pairs(split) if pair in pairs], "in the order of the tables"
        for place in (0, 1):
            assert {pair[place] for pair in pairs} == {pair[place] for pair in whole.pairs(split)}, "each comes"
    assert sampled.evaluated == [*sampled.pairs("val"), *sampled.pairs("test")]


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    replacements = ((STEPS, "steps: 0 "), ("seed: 0 ", "seed: -1 "), (GUIDANCE, "guidanc: 3.0 "))
    lines = problems(tmp_path / "params.yaml", *replacements)
    assert len(lines) == 4, "the misspelt key is unknown, and the right one is missing"
    numbers = [int(line.partition(":")[0]) for line in lines]
    assert numbers == sorted(numbers)


def test_a_missing_or_empty_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "params.yaml", CATALOG)
    (tmp_path / "params.yaml").write_text("# nothing\n")
    with pytest.raises(UserError, match="empty"):
        load(tmp_path / "params.yaml", CATALOG)


STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def test_each_stage_that_fans_out_has_resources() -> None:
    fanning = {stage for stage in STAGES if "context.fan_out(" in (ROOT / f"stages/{stage}.py").read_text()}
    assert fanning - {"fit"} | set(TRAINED) == set(FANNING_OUT)
    params = load(ROOT / "params.yaml", CATALOG)
    assert all(params.jobs[name].minutes > 0 for name in FANNING_OUT)
