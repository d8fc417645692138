"""The whole chain in a very small configuration, by real `dvc repro`, and what becomes of mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chain import Change, change, content, fail, make, succeed

from lorarar.scoring import score_table

METHODS = ["ziplora", "lorarar", "klora", "joint", "base_only", "truth", "truth_rendered"]
pytestmark = pytest.mark.timeout(1200)


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
        assert len(score_table.read(artifacts / f"score/{method}-test.parquet")) == 2
    judge = json.loads((results / "judge.json").read_text())
    assert judge["n"] == 20 and 0 <= judge["subject_balanced_accuracy"] <= 1 and judge["reads_prompts"] is False
    assert 0 <= judge["style_clip_i_auc_ci_low"] <= judge["style_clip_i_auc"] <= judge["style_clip_i_auc_ci_high"] <= 1
    assert (results / "plots/hypernet.csv").read_text().startswith("step,loss,content,style,orthogonality\n1,")
    table = (results / "tables/mars2-test.md").read_text(encoding="utf-8")
    assert "| LoRA.rar * |" in table and "| 0.71 | 1.00 |" in table and "compare the ranking" in table
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


def test_merged_adapters_are_kept_when_asked_and_have_the_sum_of_the_ranks(finished: Path, world: Path) -> None:
    from lorarar.lora.adapter import Adapter

    assert not list((finished / "artifacts/pocket/merge").iterdir())
    change(world, lambda params: params.update(keep_merged=True))
    output = succeed(world, "dvc", "repro", "merge", "generate")
    assert "Running stage 'merge'" in output and "Running stage 'generate'" not in output
    adapter = Adapter.load(world / "artifacts/pocket/merge/lorarar/dog8+glowing.safetensors")
    assert set(adapter.ranks.values()) == {4}


def test_metrics_and_plots_can_be_shown(finished: Path) -> None:
    shown = succeed(finished, "dvc", "metrics", "show")
    assert "mars2_average" in shown and max(map(len, shown.splitlines())) <= 120
    before = succeed(finished, "git", "status", "--porcelain")
    assert "index.html" in succeed(finished, "dvc", "plots", "show")
    assert succeed(finished, "git", "status", "--porcelain") == before


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
    change(world, lambda params: params["recipes"]["pocket"]["bank"]["subjects"].append("can"))
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
        (lambda p: p["recipes"]["pocket"]["bank"]["subjects"].append("dgo"), "no subject is called 'dgo'"),
        (lambda p: p["recipes"]["pocket"]["bank"]["styles"].append("glow"), "no style is called 'glow'"),
        (lambda p: p["recipes"]["pocket"]["bank"].update(rnak=2), "pocket.bank.rnak: no key here"),
    ],
)
def test_a_mistake_in_params_is_one_clear_line(world: Path, edit: Change, expected: str) -> None:
    change(world, edit)
    key = expected.removeprefix("params.yaml:1:")
    fail(world, key, "python", "-m", "stages.shared.preflight")
    if "bank" in expected or "subject" in expected:
        fail(world, key, "dvc", "repro")


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("file", "spoiled", "stage"),
    [
        ("artifacts/pocket/bank/dog8.safetensors", spoil, ["generate"]),
        ("artifacts/pocket/bank/dog8.safetensors", Path.unlink, ["generate"]),
        ("artifacts/pocket/images/subjects/dog8/02.png", Path.unlink, ["bank"]),
        ("artifacts/pocket/images/styles/glowing/00.png", spoil, ["bank"]),
        ("artifacts/pocket/hypernet/hypernet.safetensors", spoil, ["generate"]),
        (
            "artifacts/pocket/generate/lorarar/test/dog8+glowing/00.png",
            Path.unlink,
            ["score"],
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
    fail(world, path.relative_to(world).as_posix(), "python", "-m", f"stages.{stage[0]}")


ROW = {
    "lorarar/merging/registry.py": "from dataclasses import replace\n"
    "METHODS['short'] = replace(METHODS['ziplora'], name='short', title='Short ZipLoRA')\n",
    "stages/shared/schema.py": "TRAINED_KNOBS['short'] = Merger\n",
    "stages/shared/trained.py": "from dataclasses import replace\n"
    "TRAINED['short'] = replace(TRAINED['ziplora'], name='short', method='short')\n",
}
"""A method that trains, added to a copy: its row among the methods, the type of its section, its row of training."""


def test_a_method_that_trains_is_a_row(world: Path) -> None:
    for name, text in ROW.items():
        (world / name).write_text((world / name).read_text(encoding="utf-8") + text, encoding="utf-8")

    def add(params: dict[str, Any]) -> None:
        params["seeds"]["short"] = 0
        params["evaluate"]["methods"].append("short")
        params["keep_merged"] = True
        for recipe in params["recipes"].values():
            recipe["short"] = recipe["ziplora"] | {"steps": 1}

    change(world, add)
    for stage in ("fit", "merge"):
        succeed(world, "python", "-m", f"stages.{stage}")
    merged = {
        name: (world / f"artifacts/pocket/merge/{name}/dog8+glowing.safetensors") for name in ("short", "ziplora")
    }
    assert merged["short"].read_bytes() != merged["ziplora"].read_bytes(), "one step, not three"
    code = "from stages.shared.context import Context; from stages.shared import forecast, task_records\n"
    code += "context = Context.load(); print({c.stage: c.tasks for c in forecast.costs(context)})\n"
    code += "print({name: len(found) for name, found in task_records.records(context).items()})"
    told = succeed(world, "python", "-c", code)
    assert told.count("'short': 1") == 2, "its cost is forecast, and its task has a record"


def test_a_full_disk_is_told(world: Path) -> None:
    # A limit on the size of files ends in the same error class as a full disk, without one.
    code = (
        "import errno, sys; from stages import bank; from stages.shared import entry_point\n"
        "def full(*_): raise OSError(errno.ENOSPC, 'No space left on device', 'artifacts')\n"
        "bank.collect = full; sys.argv = ['bank']; entry_point.run(bank.main)"
    )
    fail(world, "artifacts: no space left; free some", "python", "-c", code)
