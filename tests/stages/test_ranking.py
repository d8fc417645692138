"""Stage ranking: the judge in other words, and other judges, on the images of every method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lorarar import pictures
from lorarar.scoring.judges import JUDGES, JudgePrompts, Question, Verdict
from slurm.local import inline
from stages import ranking
from stages.shared.context import Context

ROOT = Path(__file__).parents[2]
WHITE, BLACK = (np.full((64, 64, 3), value, np.uint8) for value in (255, 0))


class OfBrightness:
    """Says yes to bright pictures and, where its prompts are swapped, still does: its verdicts then turn around."""

    def __init__(self, name: str, prompts: JudgePrompts) -> None:
        self.name = self.identity = name
        self.prompts = prompts

    @classmethod
    def load(cls, where: str, prompts: JudgePrompts, device: str) -> OfBrightness:
        return cls(where, prompts)

    def answer(self, questions: Sequence[Question]) -> list[Verdict]:
        dark = self.name.endswith("dark")
        return [self.prompts.verdict(bool(question.test.mean() > 99) != dark, None) for question in questions]


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the stage makes of two methods, one bright and one dark, and of a control."""
    monkeypatch.setattr("slurm.store.fan_out", lambda tasks, *_: inline(tasks, "ranking"))
    monkeypatch.setitem(JUDGES, "server", f"{__name__}:OfBrightness")
    for linked in ("data", "dvc.yaml", "lorarar", "slurm", "stages"):
        (tmp_path / linked).symlink_to(ROOT / linked)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["evaluate"]["methods"] = ["direct", "average", "base_only"]
    params["headline_method"] = "direct"
    params["recipes"]["pocket"]["score"] |= {
        "judge": "http://localhost/bright",
        "ranking": {"images": 2, "judges": {"http://localhost/dark": {}}},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    context = Context.load()
    for entry in (context.catalog.subjects["can"], context.catalog.styles["glowing"]):
        for path in context.pictures(entry):
            pictures.write(path, BLACK)
    for method, shown in (("direct", [WHITE, BLACK, WHITE]), ("average", [BLACK] * 3), ("base_only", [WHITE] * 3)):
        for index, picture in enumerate(shown):
            folder = tmp_path / f"artifacts/pocket/generate/{method}/test/can+glowing"
            pictures.write(folder / f"{index:02}.png", picture)
    ranking.main(context)
    return json.loads((tmp_path / "results/pocket/ranking.json").read_text(encoding="utf-8"))


def test_methods_are_scored_by_every_wording_and_judge_on_the_first_images(found: dict[str, Any]) -> None:
    views = {view["name"]: view for view in found["test"]}
    variants = JudgePrompts.variants(ROOT / "data/prompts.yaml")
    assert set(views) == {*variants, "http://localhost/dark"} and len(variants) >= 9
    for name, prompts in variants.items():
        scores = {"direct": 0.5, "average": 1.0} if prompts.swapped else {"direct": 0.5, "average": 0.0}
        assert views[name] == {"group": "wording", "name": name, "images": 2, "scores": scores}
    assert views["http://localhost/dark"]["group"] == "judge"
    assert views["http://localhost/dark"]["scores"] == {"direct": 0.5, "average": 1.0}
