"""The whole chain in a very small configuration, by real `dvc repro`, and what becomes of mistakes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorarar.report import scores

ROOT = Path(__file__).parents[2]
COPIED = [
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvcignore",
    ".gitignore",
    "data",
    "dvc.yaml",
    "lorarar",
    "slurm",
    "stages",
]
METHODS = ["ziplora", "lorarar", "klora", "joint", "base_only", "truth", "truth_rendered"]
SMALL: dict[str, dict[str, Any]] = {
    "bank": {
        "subjects": ["dog", "vase", "dog8"],
        "styles": ["sticker", "line_drawing", "glowing"],
        "rank": 2,
        "subject": {"learning_rate": 0.002, "steps": 3, "batch_size": 2},
        "style": {"learning_rate": 0.002, "steps": 3, "batch_size": 2},
    },
    "hypernet": {"steps": 4, "batch_size": 1},
    "ziplora": {"steps": 3, "batch_size": 1},
    "joint": {"steps": 3, "batch_size": 2},
    "generate": {"images_per_pair": 2, "steps": 4, "batch_size": 2},
    "score": {"resamples": 50, "judge_questions": 20},
}

Change = Callable[[dict[str, Any]], Any]
pytestmark = pytest.mark.timeout(1200)


def make(folder: Path, methods: list[str], executor: str = "inline") -> Path:
    """A copy of the repository with a very small configuration, in a git repository of its own."""
    for name in COPIED:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    shutil.copy(ROOT / "params.yaml", folder / "params.yaml")

    def shrink(params: dict[str, Any]) -> None:
        params["executor"] = executor  # also where there is a Slurm
        params["evaluate"] = {"methods": methods, "splits": ["test"], "pairs": "all", "scheme": "paper"}
        params["follow"] = methods[0]
        for section, values in SMALL.items():
            params["bases"]["pocket"][section].update(values)

    change(folder, shrink)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    return folder


def change(folder: Path, edit: Change) -> None:
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    edit(params)
    path.write_text(yaml.safe_dump(params, sort_keys=False, allow_unicode=True), encoding="utf-8")


def call(folder: Path, *command: str) -> tuple[int, str]:
    """Exit status and all output of a command in the folder, with this Python first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def succeed(folder: Path, *command: str) -> str:
    status, output = call(folder, *command)
    assert status == 0, output
    return output


def fail(folder: Path, expected: str, *command: str) -> None:
    """The command ends with one clear line."""
    status, output = call(folder, *command)
    assert status != 0, output
    assert "Traceback" not in output, output
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert expected in line, line


def content(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern) if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make(tmp_path_factory.mktemp("first"), METHODS)
    succeed(folder, "dvc", "repro")
    return folder


@pytest.fixture
def world(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be spoiled."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_every_output_is_there(finished: Path) -> None:
    artifacts, results = finished / "artifacts/pocket", finished / "results/pocket"
    assert len(list((artifacts / "images/subjects/dog8").iterdir())) == 5
    names = {"dog", "vase", "dog8", "sticker", "line_drawing", "glowing"}
    assert {path.stem for path in (artifacts / "bank").iterdir()} == names
    for method in METHODS:
        images = artifacts / "generate" / method / "test" / "dog8+glowing"
        assert [path.name for path in sorted(images.iterdir())] == ["00.png", "01.png"]
        figures = json.loads((results / f"metrics/{method}-test.json").read_text())
        assert figures["n_images"] == 2 and figures["n_pairs"] == 1
        assert 0 <= figures["mars2_average"] <= figures["mars2_best"] <= 1
        assert {"clip_i", "dino", "clip_t", "mars2_average_ci_low", "mars2_average_ci_high"} <= figures.keys()
        assert figures["provenance"]["models"][0]["judge"].startswith("verification sha256:")
        assert len(scores.read(artifacts / f"score/{method}-test.parquet")) == 2
    judge = json.loads((results / "judge.json").read_text())
    assert judge["n"] == 20 and 0 <= judge["subject_balanced_accuracy"] <= 1 and judge["reads_prompts"] is False
    assert 0 <= judge["style_clip_i_auc_ci_low"] <= judge["style_clip_i_auc"] <= judge["style_clip_i_auc_ci_high"] <= 1
    assert (results / "plots/hypernet.csv").read_text().startswith("step,loss,content,style,orthogonality\n1,")
    table = (results / "tables/mars2-test.md").read_text(encoding="utf-8")
    assert "| LoRA.rar |" in table and "| 0.71 | 1.00 |" in table and "compare the ranking" in table
    assert "| LoRA.rar |" in (results / "tables/differences-test.md").read_text(encoding="utf-8")
    for kind in ("subject", "style"):
        assert "(n = 2) |" in (results / f"tables/mars2-by-{kind}-test.md").read_text(encoding="utf-8")
    page = (results / "report.html").read_text(encoding="utf-8")
    for section in ("results", "claim", "pictures", "failures", "coefficients", "cost", "learning", "trust", "made"):
        assert f'<section id="{section}"' in page
    assert "Joint training" in page and (results / "tables/claim-test.md").exists()
    times = json.loads((results / "times.json").read_text())
    assert times["splits"]["test"]["lorarar"]["seconds"]["median"] > 0 and times["tasks"]["bank"] == 6
    for name in ("mars2-test.png", "grid-test.webp", "overview-test.webp"):
        assert (results / "figures" / name).stat().st_size > 1000


def test_merged_adapters_have_the_sum_of_the_ranks(finished: Path) -> None:
    from lorarar.adapter import Adapter

    adapter = Adapter.load(finished / "artifacts/pocket/merge/lorarar/dog8+glowing.safetensors")
    assert set(adapter.ranks.values()) == {4}


def test_metrics_and_plots_can_be_shown(finished: Path) -> None:
    assert "mars2_average" in succeed(finished, "dvc", "metrics", "show")
    assert "index.html" in succeed(finished, "dvc", "plots", "show")


def test_again_it_does_nothing(finished: Path) -> None:
    output = succeed(finished, "dvc", "repro")
    assert "up to date" in output and "Running stage" not in output


def test_another_run_gives_the_same_whatever_else_is_run_and_wherever(finished: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "second", ["lorarar"], executor="local")
    succeed(other, "dvc", "repro", "score")
    for pattern in (
        "results/pocket/metrics/lorarar*",
        "artifacts/pocket/bank/*",
        "artifacts/pocket/generate/lorarar/**/*",
        "artifacts/pocket/score/lorarar*",
    ):
        found = content(other, pattern)
        assert found
        assert found == {name: content(finished, pattern)[name] for name in found}


def test_one_more_subject_trains_one_more_adapter(world: Path) -> None:
    change(world, lambda params: params["bases"]["pocket"]["bank"]["subjects"].append("can"))
    before = content(world, "artifacts/pocket/bank/*")
    output = succeed(world, "dvc", "repro", "bank")
    assert "bank: 6 of 7 were done before" in output
    after = content(world, "artifacts/pocket/bank/*")
    assert after.keys() - before.keys() == {"artifacts/pocket/bank/can.safetensors"}
    assert before.items() <= after.items()


def test_what_was_deleted_or_spoilt_is_made_again_from_finished_work(world: Path) -> None:
    adapter = world / "artifacts/pocket/bank/dog8.safetensors"
    before = adapter.read_bytes()
    adapter.write_bytes(before[:100])
    succeed(world, "dvc", "repro", "bank")
    assert adapter.read_bytes() == before


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda p: p.update(sed=1), "params.yaml:1: sed: no key here is called 'sed'; did you mean seed?"),
        (lambda p: p["evaluate"]["methods"].append("lorarrar"), "no method is called 'lorarrar'"),
        (lambda p: p["bases"]["pocket"]["bank"]["subjects"].append("dgo"), "no subject is called 'dgo'"),
        (lambda p: p["bases"]["pocket"]["bank"]["styles"].append("glow"), "no style is called 'glow'"),
        (lambda p: p["bases"]["pocket"]["bank"].update(rnak=2), "pocket.bank.rnak: no key here"),
    ],
)
def test_a_mistake_in_params_is_one_clear_line(world: Path, edit: Change, expected: str) -> None:
    change(world, edit)
    key = expected.removeprefix("params.yaml:1:")
    fail(world, key, "python", "-m", "stages.check")
    if "bank" in expected or "subject" in expected:
        fail(world, key, "dvc", "repro")


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("file", "spoiled", "stage"),
    [
        ("artifacts/pocket/bank/dog8.safetensors", spoil, ["merge"]),
        ("artifacts/pocket/bank/dog8.safetensors", Path.unlink, ["merge"]),
        ("artifacts/pocket/images/subjects/dog8/02.png", Path.unlink, ["bank"]),
        ("artifacts/pocket/images/styles/glowing/00.png", spoil, ["bank"]),
        ("artifacts/pocket/merge/lorarar/dog8+glowing.safetensors", spoil, ["generate", "lorarar", "test"]),
        (
            "artifacts/pocket/generate/lorarar/test/dog8+glowing/00.png",
            Path.unlink,
            ["score", "lorarar", "test"],
        ),
        ("data/pocket/base/unet/diffusion_pytorch_model*.safetensors", spoil, ["bank"]),
        ("results/pocket/metrics/lorarar-test.json", spoil, ["report"]),
        ("artifacts/pocket/score/lorarar-test.parquet", spoil, ["report"]),
    ],
)
def test_a_missing_or_corrupt_file_is_named_in_one_line(
    world: Path, file: str, spoiled: Callable[[Path], None], stage: list[str]
) -> None:
    (path,) = world.glob(file)
    spoiled(path)
    fail(world, path.relative_to(world).as_posix(), "python", "-m", f"stages.{stage[0]}", *stage[1:])


def test_a_full_disk_is_told(world: Path) -> None:
    # A limit on the size of files ends in the same error class as a full disk, without one.
    code = (
        "import errno, sys; from lorarar import files; from stages import bank, run\n"
        "def full(*_): raise OSError(errno.ENOSPC, 'No space left on device', 'artifacts')\n"
        "bank.collect = full; sys.argv = ['bank']; run.run(bank.main)"
    )
    fail(world, "artifacts: no space left; free some", "python", "-c", code)
