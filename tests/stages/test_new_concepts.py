"""Section A2.5: new concepts join the bank when the scheme asks for them, and nothing else is trained for that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from lorarar import pictures
from lorarar.data.catalog import Catalog
from lorarar.pocket.world.world import World
from stages import bank, fit, images
from stages.shared.context import Context
from stages.shared.params import load

ROOT = Path(__file__).parents[2]
NEW = {"toaster", "tv", "sofa", "cyberpunk"}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the repository's data and code, where stages run."""
    for name in ("data", "dvc.yaml", "lorarar", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def context(scheme: str, catalog: Catalog | None = None, **bank: list[str]) -> Context:
    """The shipped parameters under a scheme."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["evaluate"]["scheme"] = scheme
    params["recipes"]["pocket"]["bank"].update(bank)
    Path("params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
    catalog = catalog or Catalog.load()
    return Context(load(Path("params.yaml"), catalog), catalog.divided(scheme))


def tasks(stage: object, of: Context, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple]:
    """What the keys of a stage's tasks are made of: code, arguments, files read."""

    def fan_out(self, *groups):
        for group in groups[:1]:  # of stage fit the hypernetwork
            asked.update({task.name: (group.store.code, task.work, task.reads) for task in group.tasks})
        raise SystemExit

    asked: dict[str, tuple] = {}
    monkeypatch.setattr(Context, "fan_out", fan_out)
    with pytest.raises(SystemExit):
        stage.main(of)  # type: ignore[attr-defined]
    return asked


def test_the_bank_of_the_paper_is_what_it_was_without_them(root, monkeypatch):
    whole = Catalog.load()
    old = Catalog(*({n: e for n, e in table.items() if n not in NEW} for table in (whole.subjects, whole.styles)),
                  whole.prompts)  # fmt: skip
    before, after = (tasks(bank, context("paper", catalog), monkeypatch) for catalog in (old, whole))
    assert list(before) == list(after) and len(after) == 56
    assert before == after


def test_the_scheme_adds_them_and_trains_nothing_else_again(root, monkeypatch):
    paper, new = (tasks(bank, context(scheme), monkeypatch) for scheme in ("paper", "new_concepts"))
    assert new.keys() - paper.keys() == NEW
    assert all(new[name] == paper[name] for name in new.keys() & paper.keys())
    assert all(len(new[name][2]) == 1 for name in NEW), "one picture each"


def test_the_hypernetwork_is_that_of_the_paper(root, monkeypatch):
    paper, new = (tasks(fit, context(scheme), monkeypatch) for scheme in ("paper", "new_concepts"))
    assert paper == new


def test_their_pictures_are_drawn(root):
    few = {"subjects": ["dog", "toaster", "tv", "sofa"], "styles": ["sticker", "cyberpunk"]}
    images.main(context("new_concepts", **few))
    world, out = World.load(scheme="all"), Path("artifacts/pocket/images")
    assert np.array_equal(pictures.read(out / "subjects/tv/00.png"), world.picture("tv", 0))
    assert np.array_equal(pictures.read(out / "styles/cyberpunk/00.png"), world.style_picture("cyberpunk"))
    assert [len(list(folder.iterdir())) for folder in sorted((out / "subjects").iterdir())] == [5, 1, 1, 1]

    few = {"subjects": ["dog", "dog8", "toaster"], "styles": ["sticker", "glowing", "cyberpunk"]}
    images.main(context("paper", **few))
    assert {path.parent.name for path in out.rglob("*.png")} == {"dog", "dog8", "sticker", "glowing"}
