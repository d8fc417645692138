"""Experiment files, their settings, records and tables; a pretended `dvc` takes the place of the pipeline."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from experiments import coefficients, workspace
from experiments.__main__ import main
from experiments.experiment import changed, hydra, read
from lorarar import pictures
from lorarar.data.catalog import Catalog
from lorarar.errors import UserError
from lorarar.files import write_json
from lorarar.scoring import score_table

ROOT = Path(__file__).parents[1]
PRETENDED = """#!{python}
import json, os, shutil, subprocess, sys
from pathlib import Path
arguments, beside = sys.argv[1:], Path(__file__).parent
if arguments[:2] == ["cache", "dir"]:
    print(".dvc/cache")
if arguments[:2] == ["exp", "run"]:
    with (beside / "log").open("a") as log:
        log.write(json.dumps([os.environ["LORARAR_WORK"], *arguments]) + "\\n")
    if (beside / "fail").exists():
        sys.exit(1)
    outcome = "good" if "-Sseed=1" in arguments else "fair"
    asked = dict(a[2:].split("=", 1) for a in arguments if a.startswith("-S"))
    methods, splits = (json.loads(asked["evaluate." + key]) for key in ("methods", "splits"))
    base = json.loads(asked.get("base", '"pocket"'))
    for name in (f"{{method}}-{{split}}" for method in methods for split in splits):
        for kind, folder in (("parquet", f"artifacts/{{base}}/score"), ("json", f"results/{{base}}/metrics")):
            Path(folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(beside / f"{{outcome}}.{{kind}}", f"{{folder}}/{{name}}.{{kind}}")
    Path(f"results/{{base}}/plots").mkdir(parents=True, exist_ok=True)
    losses = "".join(f"{{i}},{{9 - i}},{{6 - i}},3,0\\n" for i in range(1, 5))
    Path(f"results/{{base}}/plots/hypernet.csv").write_text(f"step,loss,content,style,orthogonality\\n{{losses}}")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    name = arguments[arguments.index("--name") + 1]
    subprocess.run(["git", "update-ref", f"refs/exps/{{head[:2]}}/{{head[2:]}}/{{name}}", head], check=True)
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with only data and parameters, a pretended `dvc`, and the current folder in it."""
    root = tmp_path / "repository"
    for path in [*(ROOT / "data").glob("*.*"), ROOT / "params.yaml"]:
        target = root / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for name in (
        "data/pocket/base",
        "data/pocket/judges/verification",
        "data/pocket/judges/clip",
        "data/pocket/judges/dino",
    ):
        (root / name).mkdir(parents=True)
    (root / "data/pocket_light").symlink_to("pocket")
    for name in ("lorarar/a.py", "slurm/a.py", "stages/a.py", "dvc.yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    (root / ".gitignore").write_text(".work\nartifacts\n")
    (root / "experiments").mkdir()
    commands = tmp_path / "bin"
    commands.mkdir()
    right = {"good": ("glowing", "oil_painting2"), "fair": ("glowing",)}
    (commands / "dvc").write_text(PRETENDED.format(python=sys.executable))
    for outcome in ("good", "fair"):
        rows = [
            score_table.Row("dog8", style, i, True, style in right[outcome], None, None, 0, 0, True, 0.1, 0.2, 0.3)
            for style in ("glowing", "oil_painting2")
            for i in range(2)
        ]
        score_table.write(commands / f"{outcome}.parquet", rows)
        write_json(commands / f"{outcome}.json", score_table.summarise(rows))
    (commands / "dvc").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(commands / "python"))  # whose folder is looked in first
    monkeypatch.chdir(root)
    (root / ".work").mkdir()
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@a", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], check=True)
    return root


def ask(repository: Path, **content: object) -> str:
    """Write an experiment file and return its name."""
    standard = {"question": "Does it?", "methods": ["direct"], "splits": ["test"]}
    text = yaml.safe_dump({**standard, **content}, sort_keys=False)
    (repository / "experiments" / "mine.yaml").write_text(text)
    return "mine"


def asked(repository: Path) -> list[list[str]]:
    """All calls of `dvc exp run` so far: the folder of its finished tasks, and its arguments."""
    log = repository.parent / "bin" / "log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "experiments").glob("*.yaml"))])
def test_the_experiments_that_are_there_can_run(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    experiment = read(name)
    assert experiment.settings
    chosen = len(experiment.settings) > 1 and not experiment.replicates
    assert not chosen or experiment.splits == ["val"], "settings are compared on validation alone"


def test_all_fifteen_combinations_of_projections(monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = read("guided").settings
    assert len({frozenset(setting.changes["hypernet.guided"]) for setting in settings}) == 15
    letters = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
    for setting in settings:
        assert [letters[letter] for letter in setting.label.split("+")] == sorted(
            setting.changes["hypernet.guided"], key=[letters[letter] for letter in setting.label.split("+")].index
        )


def test_no_setting_takes_test_subjects_into_training(monkeypatch):
    monkeypatch.chdir(ROOT)
    catalog = Catalog.load()
    held_out = {e.name for e in [*catalog.subjects.values(), *catalog.styles.values()] if e.split == "test"}
    for name in ("bank_size", "bank_diversity"):
        for setting in read(name).settings:
            bank = setting.params["recipes"]["pocket"]["bank"]
            listed = [bank[kind] for kind in ("subjects", "styles") if bank[kind] != "all"]
            assert not held_out & {entry for entries in listed for entry in entries}


def test_lists_of_values_make_all_combinations(repository):
    name = ask(repository, settings={"hypernet.steps": [1, 2], "hypernet.guided": [["to_q"], ["to_q", "to_k"]]})
    experiment = read(name)
    labels = ["steps=1, guided=to_q", "steps=1, guided=to_q+to_k", "steps=2, guided=to_q", "steps=2, guided=to_q+to_k"]
    assert [setting.label for setting in experiment.settings] == labels
    last = experiment.settings[-1].params["recipes"]["pocket"]["hypernet"]
    assert (last["steps"], last["guided"]) == (2, ["to_q", "to_k"])
    assert experiment.overrides(experiment.settings[-1])["recipes.pocket.hypernet.steps"] == 2
    assert len({setting.digest for setting in experiment.settings}) == 4


def test_the_digest_is_of_what_scores_depend_on(repository):
    name, other = ask(repository), {"base": "pocket_light"}
    unrelated = [{}, {"executor": "inline"}, {"workers": 1}, {"resources.pocket.bank.tasks_per_job": 2}]
    digests = [
        read(name, given).settings[0].digest for given in (*unrelated, {"seed": 1}, {"score.resamples": 7}, other)
    ]
    assert len(set(digests[:4])) == 1
    assert len(set(digests)) == 4


def test_another_base_brings_its_recipe(repository):
    params = yaml.safe_load((repository / "params.yaml").read_text())
    result = changed(params, {"base": "koala", "hypernet.steps": 3}, Path("mine.yaml"))
    assert result["recipe"] == params["bases"]["koala"]["recipe"] == "sdxl"
    assert result["recipes"]["sdxl"]["hypernet"]["steps"] == 3
    assert result["recipes"]["pocket"] == params["recipes"]["pocket"]
    assert main([ask(repository), "-S", "base=pocket_light"]) == 0
    assert {'-Sbase="pocket_light"', '-Srecipe="pocket"'} <= set(asked(repository)[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"settings": [{"hypernet.stps": 1}]}, "stps=1: recipes.pocket.hypernet.stps: no key here is called 'stps'"),
        ({"settings": [{"hyper.steps": 1}]}, "hyper.steps: params.yaml has no such key"),
        (
            {"settings": [{"hypernet.steps": 0}]},
            "steps=0: recipes.pocket.hypernet.steps: should be greater than 0, not 0",
        ),
        ({"settings": [{"hypernet": {"steps": 1}}]}, "hypernet: give its keys one by one"),
        ({"settings": [{"seed": 1, "label": "a"}, {"seed": 2, "label": "a"}]}, "two settings are called 'a'"),
        ({"settings": 3}, "settings: a list of changes, or of each key the list of its values"),
        ({"methods": ["dirct"]}, "no method is called 'dirct'; did you mean direct?"),
        ({"setings": []}, "no key is called 'setings'"),
        ({"paper": "table_9"}, "no table is called 'table_9'"),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(repository, content, message, capsys):
    assert main([ask(repository, **content)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not asked(repository)


def test_an_unknown_experiment_names_its_neighbour(repository, capsys):
    ask(repository)
    assert main(["mien"]) == 1
    assert "did you mean mine?" in capsys.readouterr().err


def test_a_table_of_all_settings(repository, capsys):
    name = ask(repository, settings={"seed": [0, 1]}, methods=["direct", "average"], replicates=True, figure="seed")
    assert main([name]) == 0
    folder = repository / "results" / "pocket" / "experiments"
    assert "2 of 2 settings are in results/pocket/experiments/mine.md" in capsys.readouterr().out
    with (folder / "mine.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["setting"], row["method"], row["mars2_average"]) for row in rows] == [
        ("seed=0", "direct", "0.5"),
        ("seed=0", "average", "0.5"),
        ("seed=1", "direct", "1.0"),
        ("seed=1", "average", "1.0"),
    ]
    assert [float(row["change"]) for row in rows] == [0, 0, 0.5, 0.5]
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert {row["commit"] for row in rows} == {head[:12]}
    text = (folder / "mine.md").read_text()
    assert "+0.50 [+0.00, +1.00]" in text  # the change on the same two pairs, one of which gains all
    assert "MARS² average 0.750, deviation 0.354, from 0.500 to 1.000" in text
    assert (folder / "mine.png").stat().st_size > 1000
    refs = subprocess.run(["git", "for-each-ref", "refs/exps"], capture_output=True, text=True).stdout
    assert f"mine-seed-0-{head[:7]}" in refs and f"mine-seed-1-{head[:7]}" in refs


def test_the_loss_at_the_end_stands_beside_what_the_hypernetwork_merges(repository):
    name = ask(repository, settings={"seed": [0, 1]}, methods=["direct", "lorarar"])
    assert main([name]) == 0
    folder = repository / "results/pocket/experiments"
    with (folder / f"{name}.csv").open(newline="") as file:
        found = {
            row["method"]: [row[term] for term in ("loss", "loss_content", "loss_style")]
            for row in csv.DictReader(file)
        }
    assert found == {"direct": ["", "", ""], "lorarar": ["5.0", "2.0", "3.0"]}  # of the last of four steps
    rows = [line.split(" | ") for line in (folder / f"{name}.md").read_text().splitlines() if " | test | " in line]
    assert {row[1]: row[-3] for row in rows} == {"Direct merge": "", "LoRA.rar": "5.0 (2.0, 3.0)"}


def test_one_page_has_every_question_that_was_asked(repository):
    name = ask(repository, settings={"seed": [0, 1]}, methods=["direct", "average"])
    assert main([name, "--only", "seed=1"]) == 0
    text = (repository / "results/pocket/experiments.html").read_text()
    assert text.count("<section") == 1
    assert 'href="experiments/mine.md"' in text
    assert "seed=1: Direct merge" in text and "seed=1: Average" in text
    assert "1.00 <small>[1.00, 1.00]</small>" in text and "images of 2 pairs of test." in text
    assert "Not run yet: seed=0." in text
    assert main([name]) == 0
    text = (repository / "results/pocket/experiments.html").read_text()
    assert "+0.50 <small>[+0.00, +1.00]</small>" in text and "Changes are against <em>seed=0</em>" in text


def test_rows_of_one_setting_are_called_by_the_method(repository):
    assert main([ask(repository, settings={"seed": [1]}, methods=["direct", "average"])]) == 0
    text = (repository / "results/pocket/experiments.html").read_text()
    assert "Setting: seed=1." in text and ">Direct merge<" in text and "seed=1: " not in text


def test_runs_start_with_finished_tasks_in_stores_of_their_own(repository, monkeypatch):
    monkeypatch.setenv("LORARAR_WORK", str(repository / ".work"))
    done = repository / ".work/pocket/bank/abc/weights"
    done.parent.mkdir(parents=True)
    done.write_text("1")
    assert main([ask(repository)]) == 0
    tree = repository / ".work/experiments/tree"
    assert asked(repository)[0][0] == ".work" and (tree / ".work/pocket/bank/abc/weights").samefile(done)
    assert not (tree / ".work/experiments").exists()


def test_what_is_done_is_not_done_again(repository):
    name = ask(repository, settings={"seed": [0, 1]})
    assert main([name, "--only", "seed=1"]) == 0
    assert "Not run yet: seed=0.\n" in (repository / "results/pocket/experiments/mine.md").read_text()
    assert main([name]) == main([name]) == 0
    calls = asked(repository)
    assert ["-Sseed=1" in call for call in calls] == [True, False]
    assert all(call[-2:] == ["score", "headline"] for call in calls)

    (repository / "lorarar" / "a.py").write_text("2")
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@a", "commit", "-qam", "b"], check=True)
    assert main([name]) == 0
    assert len(asked(repository)) == 4, "other code, other results"


def test_a_failed_setting_ends_the_run_and_keeps_what_is_done(repository, capsys):
    name = ask(repository, settings={"seed": [0, 1]})
    assert main([name, "--only", "seed=0"]) == 0
    (repository.parent / "bin" / "fail").touch()
    assert main([name]) == 1
    assert "mine: seed=1: failed, see above; the same command continues" in capsys.readouterr().err
    (repository.parent / "bin" / "fail").unlink()
    assert main([name]) == 0
    assert len(asked(repository)) == 3


def test_only_what_is_committed_runs(repository, capsys):
    name = ask(repository)
    (repository / "lorarar" / "a.py").write_text("2")
    assert main([name]) == 1
    assert "lorarar/a.py: differs from the last commit" in capsys.readouterr().err


def test_what_is_given_for_all_settings_is_told(repository):
    assert main([ask(repository), "-S", "executor=inline", "-S", "generate.steps=3"]) == 0
    assert "Made by `python -m experiments mine -S generate.steps=3`" in (
        repository / "results/pocket/experiments/mine.md"
    ).read_text(encoding="utf-8")
    assert {'-Sexecutor="inline"', "-Srecipes.pocket.generate.steps=3"} <= set(asked(repository)[0])


def test_a_dry_run_runs_nothing(repository, capsys):
    assert main([ask(repository, settings={"seed": [3]}), "--dry-run"]) == 0
    assert "mine 1/1: seed=3: to run" in capsys.readouterr().out
    assert not asked(repository) and not (repository / "results").exists()


def test_divisions_keep_training_and_test_apart():
    catalog = Catalog.load(ROOT)
    for name in ("no_animals", "no_objects"):
        divided = catalog.divided(name, ROOT)
        for entries in (divided.subjects, divided.styles):
            kinds = {
                split: {getattr(e, "kind", None) for e in entries.values() if e.split == split}
                for split in ("train", "test")
            }
            assert kinds["train"] and kinds["test"]
        assert not {s.kind for s, _ in divided.pairs("train")} & {s.kind for s, _ in divided.pairs("test")}
        assert not {t.family for _, t in divided.pairs("train")} & {t.family for _, t in divided.pairs("test")}
        assert not {"toaster", "cyberpunk"} & {*divided.subjects, *divided.styles}
    with pytest.raises(UserError, match="no 'nothing' there; known divisions: paper, no_animals, no_objects"):
        catalog.divided("nothing", ROOT)


def test_new_concepts_are_merged_by_the_hypernetwork_of_the_papers_division():
    catalog = Catalog.load(ROOT)
    paper, new = catalog.divided("paper", ROOT), catalog.divided("new_concepts", ROOT)
    assert not {"toaster", "tv", "sofa", "cyberpunk"} & {*paper.subjects, *paper.styles}
    assert len(paper.subjects) == 30 and len(paper.styles) == 26
    assert new.pairs("train") == paper.pairs("train")
    merged = {(subject.name, style.name) for subject, style in new.pairs("test")}
    styles = [name for name, style in paper.styles.items() if style.split == "test"] + ["cyberpunk"]
    assert merged == set(product(["toaster", "tv", "sofa"], styles)) and len(merged) == 18
    assert all(subject.images == 1 for subject, _ in new.pairs("test"))


def test_values_are_written_as_dvc_reads_them():
    assert hydra(["to_q", "to_out.0"]) == '["to_q","to_out.0"]'
    assert hydra([1.0, 0.5]) == "[1.0,0.5]"
    assert hydra(None) == "null"
    assert hydra("A house") == '"A house"'


def test_a_record_belongs_to_its_parameters_and_base(repository):
    experiment = read(ask(repository, settings={"seed": [0, 1]}))
    keys = {workspace.key(experiment, setting, "HEAD") for setting in experiment.settings}
    assert len(keys) == 2


def test_shares_of_what_differs_between_pairs():
    content, style = torch.randn(4, 1, 300), torch.randn(1, 3, 300)
    content, style = content - content.mean(0), style - style.mean(1, keepdim=True)
    of_content, of_style, chance = coefficients._shares((content + 0 * style).flatten(0, 1), styles=3)
    assert (of_content, of_style, chance) == ("1.00", "0.00", "0.27 and 0.18")
    both = _numbers(coefficients._shares((content + style).flatten(0, 1), styles=3))
    assert sum(both) == pytest.approx(1, abs=0.011)
    noise = torch.randn(12, 4000)
    assert _numbers(coefficients._shares(noise - noise.mean(0), styles=3)) == pytest.approx([3 / 11, 2 / 11], abs=0.02)


def test_pictures_differ_by_levels(tmp_path):
    for folder, level in (("mine", 100), ("other", 103)):
        (tmp_path / folder).mkdir()
        for index in range(2):
            picture = np.full((4, 4, 3), level if index else 0, np.uint8)
            pictures.write(tmp_path / folder / f"{index:02}.png", picture)
    these, those = ({"dog8+glowing": tmp_path / folder} for folder in ("mine", "other"))
    assert coefficients._difference(these, those) == coefficients._difference(those, these) == 1.5


def _numbers(shares: list[str]) -> list[float]:
    return [float(share) for share in shares[:2]]
