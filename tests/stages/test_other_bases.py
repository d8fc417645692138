"""`base: sdxl` by the same stages, on a model of SDXL's classes with random weights: everything but skill and size."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_critic import build_critic

from lorarar import pictures
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter
from lorarar.scoring import score_table
from lorarar.scoring.judges import JudgePrompts
from stages import bank, base, fit, generate, judge, merge, quality, ranking, report, score, study
from stages.shared import preflight
from stages.shared.base_model import base_model
from stages.shared.context import Context

ROOT = Path(__file__).parents[2]
SUBJECTS, STYLES = ["dog", "vase", "can", "dog8"], ["sticker", "line_drawing", "glowing"]
METHODS = ["ziplora", "lorarar", "joint", "base_only", "truth"]
SMALL: dict[str, dict[str, Any]] = {
    "backbone": {"resolution": 16},
    "bank": {
        "subjects": SUBJECTS,
        "styles": STYLES,
        "rank": 2,
        "subject": {"learning_rate": 0.01, "steps": 2, "batch_size": 1},
        "style": {"learning_rate": 0.01, "steps": 2, "batch_size": 1},
    },
    "hypernet": {"steps": 2},
    "ziplora": {"steps": 2},
    "joint": {"steps": 2},
    "generate": {"images_per_pair": 2, "steps": 2},
    # A critic of random weights answers nothing that is yes or no.
    "score": {
        "judge": "critic",
        "judge_options": {"max_unanswered": 1.0},
        "clip": "clip",
        "dino": "dino",
        "resamples": 20,
    },
}


def change(root: Path, base: str = "sdxl", **top: Any) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params |= {"base": base, "recipe": params["bases"][base]["recipe"], "executor": "inline", **top}
    params["evaluate"] |= {"methods": METHODS, "splits": ["test"], "pairs": "all"}
    params["keep_merged"] = True
    for section, values in SMALL.items():
        params["recipes"]["sdxl"][section].update(values)
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A repository after stage images, whose base is tiny: pictures are of any size, as photographs are."""
    root = tmp_path_factory.mktemp("large")
    for linked in (
        "lorarar",
        "slurm",
        "stages",
        "dvc.lock",
        "dvc.yaml",
        "requirements.lock",
        *(f"data/{p.name}" for p in (ROOT / "data").iterdir()),
    ):
        (root / linked).parent.mkdir(exist_ok=True)
        if linked != "data/sdxl":
            (root / linked).symlink_to(ROOT / linked)
    (root / "data/sdxl/base").mkdir(parents=True)
    (root / "data/sdxl/base/model.yaml").write_text(f"folder: {tiny_folder}\n")
    judges = root / "data/sdxl/judges"
    torch.manual_seed(0)
    words = ["glowing"]
    model, processor = build_critic(JudgePrompts.load(ROOT / "data/prompts.yaml"), words)
    for part in (model, processor):
        part.save_pretrained(judges / "critic")
    for name in ("clip", "dino"):
        (judges / name).symlink_to(ROOT / "data/pocket/judges" / name)
    change(root)
    random = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        context = Context.load()
        for path in (path for member in context.members for path in context.pictures(member)):
            pictures.write(path, random.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    return root


@pytest.fixture
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="module")
def finished(root: Path) -> Path:
    """The same after all stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        context = Context.load()
        for stage in (preflight, bank, fit, merge, judge, generate, score, quality, ranking, study, report):
            stage.main(context)
    return root


def test_every_stage_of_the_chain_runs_on_a_base_that_is_only_named(finished: Path) -> None:
    artifacts = finished / "artifacts/sdxl"
    adapter = Adapter.load(artifacts / "bank/dog8.safetensors")
    assert len(adapter.layers) == 56 and set(adapter.ranks.values()) == {2}
    assert {path.stem for path in (artifacts / "ziplora").iterdir()} == {"can+glowing", "dog8+glowing"}
    merged = Adapter.load(artifacts / "merge/lorarar/dog8+glowing.safetensors")
    assert set(merged.ranks.values()) == {4}
    image = pictures.read(artifacts / "generate/lorarar/test/dog8+glowing/01.png")
    assert image.shape == (16, 16, 3) and image.std() > 0
    rows = score_table.read(artifacts / "score/lorarar-test.parquet")
    assert len(rows) == 4 and {row.family_yes for row in rows} == {None}
    figures = json.loads((finished / "results/sdxl/metrics/lorarar-test.json").read_text())
    assert figures["n_pairs"] == 2 and "family" not in figures
    assert figures["provenance"]["models"][0]["judge"].startswith("critic sha256:")


def test_what_only_a_drawn_world_knows_is_said_and_left_out(finished: Path) -> None:
    results = finished / "results/sdxl"
    assert not list((finished / "artifacts/sdxl/generate/truth/test").iterdir())
    assert json.loads((results / "metrics/truth-test.json").read_text())["n_images"] == 0
    assert "photographs" in json.loads((results / "judge.json").read_text())["not_examined"]
    assert "photographs" in json.loads((results / "quality.json").read_text())["not_known"]
    assert "photographs" in (results / "study/simulated/results.md").read_text()
    table = (results / "tables/mars2-test.md").read_text(encoding="utf-8")
    assert "| 0.71 | 1.00 |" in table and "not examined" in table and "Known truth" not in table


def test_a_report_on_koala_has_the_papers_figures_of_koala(
    finished: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "base", "koala")
    monkeypatch.setattr(Context, "artifacts", Path("artifacts/sdxl"))
    monkeypatch.setattr(Context, "results", here / "results/koala")
    shutil.copytree(here / "results/sdxl", here / "results/koala", dirs_exist_ok=True)
    report.main(Context.load())
    table = (here / "results/koala/tables/mars2-test.md").read_text(encoding="utf-8")
    assert "| 0.56 | 0.92 |" in table and "| 0.71 | 1.00 |" not in table


def test_the_base_itself_is_not_trained_here(here: Path) -> None:
    with pytest.raises(UserError, match="base sdxl: is trained elsewhere; `lorarar doctor --base sdxl` fetches it"):
        base.main(Context.load())


def test_a_stage_that_wants_a_gpu_has_one_worker_unless_told(here: Path) -> None:
    context = Context.load()
    assert context.workers_of("bank") == 1
    knobs = context.params.model_copy(update={"workers": 3})
    assert Context(knobs, context.catalog).workers_of("bank") == 3


def test_the_model_is_computed_with_as_params_say(here: Path) -> None:
    model = replace(base_model(Context.load()), dtype="bfloat16").load()
    assert model.dtype == torch.bfloat16 and model.vae.dtype == torch.float32
    assert base_model(Context.load(), training=True).dtype == "auto"


@pytest.mark.parametrize("base", ["sdxl", "koala"])
def test_dvc_finds_all_that_another_base_needs(tmp_path: Path, base: str) -> None:
    """What no stage makes is there, and every template is filled: `dvc exp run -S base=sdxl` needs no more."""
    for name in (".dvc/config", "dvc.yaml", "params.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("data", "lorarar", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    world = tmp_path / f"data/{base}/world.yaml"
    world.write_text("photographs: data/photographs.yaml\n")
    path = tmp_path / "params.yaml"
    text = path.read_text(encoding="utf-8").replace("base: pocket ", f"base: {base} ", 1)
    path.write_text(text.replace("recipe: pocket ", "recipe: sdxl ", 1), encoding="utf-8")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["dvc", "status", "--json"], cwd=tmp_path, env={**os.environ, "PATH": search}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert "generate" in status and "report" in status
    deps = {
        path: state
        for name, changes in status.items()
        if name != "base"
        for change in changes
        if isinstance(change, dict)
        for path, state in change.get("changed deps", {}).items()
        if not path.startswith(("artifacts/", "results/"))
    }
    assert deps and not [path for path, state in deps.items() if state == "deleted"]
