"""A small world to build studies from: three subjects, two styles, three methods, two images of each pair."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lorarar import pictures
from lorarar.scoring import score_table
from lorarar.study.build import Sources, build
from lorarar.study.manifest import Study
from lorarar.study.storage import Storage

SUBJECTS, STYLES, METHODS = ("cat2", "dog8", "can"), ("glowing", "sticker"), ("direct", "lorarar", "ziplora")


def accepted(method: str, subject: str, index: int) -> bool:
    """The judge accepts second images, but of ziplora's none of cat2."""
    return index == 1 and (method, subject) != ("ziplora", "cat2")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    root, random = tmp_path_factory.mktemp("world"), np.random.default_rng(0)

    def draw(path: Path) -> None:
        pictures.write(path, random.integers(0, 256, (16, 16, 3), dtype=np.uint8))

    for kind, names in (("subjects", SUBJECTS), ("styles", STYLES)):
        for name in names:
            draw(root / "references" / kind / name / "00.png")
    for method in METHODS:
        rows = []
        for subject in SUBJECTS:
            for style in STYLES:
                for index in (0, 1):
                    draw(root / "images" / method / "test" / f"{subject}+{style}" / f"{index:02}.png")
                    right = accepted(method, subject, index)
                    values = tuple(float(value) for value in random.random(3))
                    rows.append(score_table.Row(subject, style, index, right, right, 0.5, 0.5, 0, 0, True, *values))
        score_table.write(root / "scores" / f"{method}-test.parquet", rows)
    return Sources(root / "images", root / "scores", root / "references", "test")


@pytest.fixture
def make(sources: Sources, tmp_path: Path) -> Callable[..., Study]:
    """Build a study of some methods."""

    def made(*methods: str, name: str = "study", **options) -> Study:
        build(tmp_path / name, sources, methods or ("direct", "ziplora"), **options)
        return Study.load(tmp_path / name)

    return made


@pytest.fixture
def study(make) -> Study:
    """Six comparisons of two methods, two checks, two repeats: ten a rater."""
    return make(repeats=2, checks=2)


@pytest.fixture
def storage(study: Study):
    opened = Storage(study)
    yield opened
    opened.close()
