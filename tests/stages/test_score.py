"""Stage score on pictures of noise: equal runs make equal bytes, and no question is asked twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from lorarar import pictures
from lorarar.errors import UserError
from lorarar.scoring import score_table
from lorarar.scoring.judges.verification import VerificationJudge
from slurm.local import inline
from stages import score
from stages.shared import scoring_models
from stages.shared.context import Context

ROOT = Path(__file__).parents[2]
PAIRS = ("dog8+glowing", "can+glowing")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Go to a folder that looks like the repository after stage generate, with two pairs of two images."""
    # Workers cost seconds to start, and their questions could not be counted here.
    monkeypatch.setattr("slurm.store.fan_out", lambda tasks, *_: inline(tasks, "score"))

    def go(name: str) -> Path:
        root, random = tmp_path / name, np.random.default_rng(0)
        root.mkdir()
        for linked in ("data", "dvc.yaml", "lorarar", "slurm", "stages"):
            (root / linked).symlink_to(ROOT / linked)
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["evaluate"]["methods"], params["headline_method"] = ["direct"], "direct"
        (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        monkeypatch.chdir(root)
        context = Context.load()
        entries = [context.catalog.subjects[name] for name in ("dog8", "can")]
        for path in (
            path for entry in [*entries, context.catalog.styles["glowing"]] for path in context.pictures(entry)
        ):
            pictures.write(path, random.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        for pair in PAIRS:
            for index in range(2):
                picture = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                pictures.write(root / f"artifacts/pocket/generate/direct/test/{pair}/{index:02}.png", picture)
        return root

    return go


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """All questions that reach the judge."""
    questions: list[object] = []
    answer = VerificationJudge.answer
    monkeypatch.setattr(VerificationJudge, "answer", lambda self, q, **k: questions.extend(q) or answer(self, q, **k))
    return questions


def run() -> tuple[bytes, bytes]:
    score.main(Context.load())
    table, figures = Path("artifacts/pocket/score/direct-test.parquet"), Path("results/pocket/metrics/direct-test.json")
    return table.read_bytes(), figures.read_bytes()


def test_two_runs_make_the_same_bytes_and_say_what_made_them(place: Callable[[str], Path]) -> None:
    place("first")
    first = run()
    place("second")
    assert run() == first
    figures = json.loads(first[1])
    assert (figures["n_images"], figures["n_pairs"], figures["unanswered"]) == (4, 2, 0)
    flat = [value for name, value in figures.items() if name != "provenance"]
    assert all(isinstance(value, (int, float)) for value in flat)
    for name in ("mars2_average", "mars2_best", "attempts", "clip_i", "dino", "clip_t", "family"):
        assert figures[f"{name}_ci_low"] <= figures[name] <= figures[f"{name}_ci_high"]
    judge, clip, dino = figures["provenance"]["models"]
    assert judge["judge"].startswith("verification sha256:")
    assert clip["checkpoint"].startswith("sha256:") and dino["preprocessing"]["size"]["height"] == 64
    assert figures["provenance"]["seed"] == 0 and figures["provenance"]["resamples"] == 2000
    assert [row.index for row in score_table.read("artifacts/pocket/score/direct-test.parquet")] == [0, 1, 0, 1]


def test_the_judge_is_asked_only_what_is_new(place: Callable[[str], Path], asked: list[object]) -> None:
    root = place("here")
    first = run()
    references = sum(entry.images + 1 for entry in (Context.load().catalog.subjects[n] for n in ("dog8", "can")))
    assert len(asked) == 2 * references
    (root / ".work/pocket/score").rename(root / "gone")
    asked.clear()
    assert run() == first and not asked
    picture = np.full((64, 64, 3), 9, np.uint8)
    pictures.write(root / "artifacts/pocket/generate/direct/test/can+glowing/02.png", picture)
    run()
    assert len(asked) == Context.load().catalog.subjects["can"].images + 1


def test_models_are_shipped_folders_or_come_from_elsewhere(place: Callable[[str], Path]) -> None:
    root = place("here")
    assert scoring_models.model_names(Context.load()).judge == "data/pocket/judges/verification"
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    params["recipes"]["pocket"]["score"] |= {"judge": "http://localhost:9/v1", "judge_options": {"model": "critic"}}
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    names = scoring_models.model_names(Context.load())
    assert (names.judge, names.clip) == ("http://localhost:9/v1", "data/pocket/judges/clip")
    assert names.options == {"model": "critic"}


def test_a_spoilt_record_of_the_models_is_made_again(place: Callable[[str], Path]) -> None:
    root = place("here")
    first = run()
    path = next((root / ".work/pocket/score").glob("*/models.json"))
    path.write_text(path.read_text(encoding="utf-8").replace("verification", "another"), encoding="utf-8")
    assert run() == first


def test_a_table_is_of_one_set_of_models(place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = place("here")
    run()
    # A server may swap its weights behind one address: same settings, another judge. One pair is scored by that.
    shutil.rmtree(next((root / ".work/pocket/score").glob("[0-9a-f]*")))
    monkeypatch.setattr(VerificationJudge, "identity", "another")
    monkeypatch.setattr(scoring_models, "_load", scoring_models._load.__wrapped__)
    with pytest.raises(UserError, match="scored by different models; delete the folder"):
        run()
